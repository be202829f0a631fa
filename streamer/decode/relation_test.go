package decode_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/failure"
	"diehard/streamer/decode"
)

// Through a partitioned table the server announces the root and then the leaf;
// rows come under the root.
func TestThePartitionIsAnnouncedAndNeverUsed(t *testing.T) {
	t.Parallel()
	const leafOID = outboxOID + 1
	d, rows := decode.NewDecoder(decode.Position{}), new(decode.Rows)
	leaf := relationMessage(leafOID, "outbox_p20261123", columnType{"something", oidText}, columnType{"else", 600})
	feed(t, d, rows,
		beginMessage(sampleLSN, sampleTime),
		relationMessage(outboxOID, "outbox", outbox...), leaf,
		insertMessage(outboxOID, sampleRow()...))
	assert.Equal(t, 1, rows.Len())

	_, err := d.Decode(insertMessage(leafOID, null, null), rows)
	require.ErrorContains(t, err, "the publication sends rows of table public.outbox_p20261123: publish the table outbox alone")
	assert.Equal(t, failure.Fatal, failure.Of(err))
}

func TestUnknownColumnsAreIgnored(t *testing.T) {
	t.Parallel()
	columns := slices.Concat([]columnType{{"shard", 21}}, outbox, []columnType{{"point", 600}, {"note", oidText}})
	row := slices.Concat([]datum{asBytes("0001")}, sampleRow(), []datum{asText("(1,2)"), null})
	rows := new(decode.Rows)
	feed(t, started(t, columns...), rows, insertMessage(outboxOID, row...))
	require.Equal(t, 1, rows.Len())
	assert.Equal(t, `{"a": 1}`, string(rows.ContextAt(0)))
	assert.Equal(t, sampleID, rows.IDAt(0))
}

func TestColumnsAreFoundByNameInAnyOrder(t *testing.T) {
	t.Parallel()
	columns, row := slices.Clone(outbox), sampleRow()
	slices.Reverse(columns)
	slices.Reverse(row)
	rows := new(decode.Rows)
	feed(t, started(t, columns...), rows, insertMessage(outboxOID, row...))
	require.Equal(t, 1, rows.Len())
	for _, name := range []string{"id", "event_type", "event_date_time", "environment", "event_context", "metadata_version"} {
		assert.NotEmpty(t, valueOf(rows, 0, name), name)
	}
	assert.Equal(t, sampleID, rows.IDAt(0))
}

// A table announced anew after DDL replaces what was known of it.
func TestTheLastAnnouncementCounts(t *testing.T) {
	t.Parallel()
	d, rows := started(t, outbox...), new(decode.Rows)
	feed(t, d, rows, insertMessage(outboxOID, sampleRow()...))
	feed(t, d, rows,
		relationMessage(outboxOID, "outbox", append([]columnType{{"first", oidText}}, outbox...)...),
		insertMessage(outboxOID, append([]datum{asText("x")}, sampleRow()...)...))
	assert.Equal(t, 2, rows.Len())
}

func TestTheOptionalColumnMayBeAbsent(t *testing.T) {
	t.Parallel()
	rows := new(decode.Rows)
	feed(t, started(t, outbox[:6]...), rows, insertMessage(outboxOID, sampleRow()[:6]...))
	assert.Equal(t, 1, rows.Len())
	assert.Empty(t, rows.Traces)
}

func TestATableThatIsNotOursIsFatal(t *testing.T) {
	t.Parallel()
	for _, c := range outbox[:6] { // the required ones
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			change := func(name string, oid uint32) []columnType {
				columns := slices.Clone(outbox)
				columns[slices.Index(columns, c)] = columnType{name, oid}
				return columns
			}
			insert := insertMessage(outboxOID, sampleRow()...)
			fatal := func(d *decode.Decoder, insert []byte, want string) {
				for range 2 { // it stays fatal
					rows := new(decode.Rows)
					_, err := d.Decode(insert, rows)
					require.ErrorContains(t, err, want)
					assert.Equal(t, failure.Fatal, failure.Of(err))
					assert.True(t, rows.Empty())
				}
			}
			fatal(started(t, change("renamed", c.oid)...), insert, "table public.outbox has no column "+c.name+" any more")
			fatal(started(t, change(c.name, 1700)...), insert, "column outbox."+c.name+" has a type (oid 1700) that cannot be mapped")

			without := slices.DeleteFunc(slices.Clone(outbox), func(o columnType) bool { return o == c })
			fatal(started(t, without...), insertMessage(outboxOID, sampleRow()[1:]...), "table public.outbox has no column "+c.name+" any more")
		})
	}
}

func TestAllMissingColumnsAreNamed(t *testing.T) {
	t.Parallel()
	_, err := started(t, outbox[0]).Decode(insertMessage(outboxOID, sampleRow()[0]), new(decode.Rows))
	require.ErrorContains(t, err, "no column environment, event_context, event_date_time, event_type, metadata_version any more")
}
