package decode_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

// A rejected row keeps all that was received; decoded again after its one flaw
// is fixed, it is the row that should have been.
func TestARejectBecomesTheRowOnceItIsFixed(t *testing.T) {
	t.Parallel()
	rows := new(decode.Rows)
	d := started(t, outbox...)
	feed(t, d, rows, insertMessage(outboxOID, with("event_date_time", binaryInt8(1<<63-1))...))
	require.Len(t, rows.Rejects, 1)
	reject := rows.Rejects[0]
	assert.Equal(t, at(sampleLSN, 1), reject.Position)
	assert.Equal(t, sampleTime, reject.CommitTime)
	assert.Equal(t, sampleID, reject.ID)
	assert.Equal(t, "user_created", reject.Type)
	assert.Zero(t, reject.Code)
	assert.Equal(t, "column event_date_time is infinite", reject.Reason)

	tuple, err := decode.ParseTuple(reject.Raw)
	require.NoError(t, err)
	require.Len(t, tuple.Columns, len(outbox))
	for i, c := range outbox {
		assert.Equal(t, c.name, tuple.Columns[i].Name)
		assert.Equal(t, c.oid, tuple.Columns[i].OID)
	}
	again := new(decode.Rows)
	require.EqualError(t, tuple.Append(again, reject.Position, reject.CommitTime), "column event_date_time is infinite")
	assert.True(t, again.Empty())

	tuple.Columns[2].Value = binaryTime(sampleTime).value
	require.NoError(t, tuple.Append(again, reject.Position, reject.CommitTime))
	good := new(decode.Rows)
	feed(t, started(t, outbox...), good, insertMessage(outboxOID, sampleRow()...))
	assert.Equal(t, good, again)
}

func TestARejectOfNullsCanBeRead(t *testing.T) {
	t.Parallel()
	rows := new(decode.Rows)
	feed(t, started(t, outbox...), rows, insertMessage(outboxOID, null, null, null, null, null, null, null, null, null))
	require.Len(t, rows.Rejects, 1)
	r := rows.Rejects[0]
	assert.Equal(t, "column event_context, event_date_time, event_type, id is NULL", r.Reason)
	assert.Zero(t, r.ID)
	assert.Empty(t, r.Type)
	assert.Positive(t, rows.Bytes())
	tuple, err := decode.ParseTuple(r.Raw)
	require.NoError(t, err)
	for _, c := range tuple.Columns {
		assert.Equal(t, "n", c.Format)
		assert.Empty(t, c.Value)
	}
	assert.EqualError(t, tuple.Append(rows, r.Position, 0), r.Reason)
}

// A row read from the table means what it means in the WAL, and a column that is not there is
// not one that is NULL.
func TestNullInATupleIsTheDefault(t *testing.T) {
	t.Parallel()
	row := with("environment", null)
	streamed, read := new(decode.Rows), new(decode.Rows)
	feed(t, started(t, outbox...), streamed, insertMessage(outboxOID, row...))
	require.Empty(t, streamed.Rejects)
	var tuple decode.Tuple
	for i, c := range outbox {
		tuple.Columns = append(tuple.Columns, decode.TupleColumn{Name: c.name, OID: c.oid, Format: string(rune(row[i].format)), Value: row[i].value})
	}
	require.NoError(t, tuple.Append(read, streamed.Position(0), streamed.CommitTime[0]))
	assert.Equal(t, streamed, read)
	tuple.Columns = slices.DeleteFunc(tuple.Columns, func(c decode.TupleColumn) bool { return c.Name == "environment" })
	assert.EqualError(t, tuple.Append(read, streamed.Position(0), 0), "column environment is NULL")
}

// What is not text survives: the bytes are those of the WAL.
func TestRawBytesSurviveEncoding(t *testing.T) {
	t.Parallel()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	want := decode.Tuple{Columns: []decode.TupleColumn{
		{Name: "id", OID: oidUUID, Format: "b", Value: all},
		{Name: "environment", OID: oidText, Format: "t", Value: []byte("é\x00\"\\\n")},
		{Name: "nothing", OID: 600, Format: "n"},
	}}
	got, err := decode.ParseTuple(want.Encode())
	require.NoError(t, err)
	assert.Equal(t, want, got)
}

func TestRawMustBeATuple(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{"", "{", `{"columns":1}`, `{"columns":[{"value":"not base64!"}]}`} {
		_, err := decode.ParseTuple(raw)
		assert.ErrorContains(t, err, "parse raw row", raw)
	}
}

// A row that ClickHouse refused has been decoded well; its tuple is rebuilt from
// the columns and decodes to the same row.
func TestATupleOfARowDecodesToThatRow(t *testing.T) {
	t.Parallel()
	rows := new(decode.Rows)
	d := started(t, outbox...)
	feed(t, d, rows,
		insertMessage(outboxOID, sampleRow()...),
		insertMessage(outboxOID, with("event_context", asText(""))...),
		insertMessage(outboxOID, with("environment", binaryString(""))...),
		insertMessage(outboxOID, with("published_by", binaryString("größe"))...),
		insertMessage(outboxOID, with("trace_context", null)...),
		insertMessage(outboxOID, with("event_date_time", binaryInt8(-1))...),
		insertMessage(outboxOID, with("metadata_version", binaryInt8(1<<63-1))...))
	require.Equal(t, 7, rows.Len())

	again := new(decode.Rows)
	for i := range rows.Len() {
		tuple, err := decode.ParseTuple(rows.TupleAt(i).Encode())
		require.NoError(t, err)
		require.NoError(t, tuple.Append(again, rows.Position(i), rows.CommitTime[i]))
	}
	rows.Traces, again.Traces = nil, nil // they served their purpose when the row was first tried
	assert.Equal(t, rows, again)
}

// Values in the formats of PostgreSQL, each through a reject and back.
func TestEveryValueDecodesAgainFromItsTuple(t *testing.T) {
	t.Parallel()
	for _, v := range values(t) {
		var tuple decode.Tuple
		for i, d := range with(v.column, v.datum) {
			c := decode.TupleColumn{Name: outbox[i].name, OID: outbox[i].oid, Format: string(rune(d.format)), Value: d.value}
			if c.Name == v.column {
				c.OID = v.oid
			}
			tuple.Columns = append(tuple.Columns, c)
		}
		tuple, err := decode.ParseTuple(tuple.Encode())
		require.NoError(t, err)
		rows := new(decode.Rows)
		err = tuple.Append(rows, at(sampleLSN, 1), sampleTime)
		if v.bad != "" {
			require.EqualError(t, err, v.bad, v.name)
			assert.True(t, rows.Empty())
			continue
		}
		require.NoError(t, err, v.name)
		assert.Equal(t, v.want, valueOf(rows, 0, v.column), v.name)
	}
}
