package decode_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/event"
	"diehard/streamer/decode"
)

// decodeHead decodes the first n bytes of whole.
func decodeHead(t *testing.T, d *decode.Decoder, rows *decode.Rows, whole []byte, n int) decode.Kind {
	t.Helper()
	kind, err := d.DecodeHead(append(make([]byte, 0, n), whole[:n]...), len(whole), rows)
	require.NoError(t, err, "%d of %d bytes", n, len(whole))
	return kind
}

var withAttachment = append(append([]columnType{}, outbox...), columnType{"attachment", oidText})

// Wherever the beginning of a row ends, there is a row: whole if all that event_log takes is in it, else a reject.
func TestARowIsReadFromItsBeginning(t *testing.T) {
	t.Parallel()
	whole := insertMessage(outboxOID, append(sampleRow(), asText(strings.Repeat("x", 100)))...)
	const publishedAt = 1 + 4 + 8
	complete := len(insertMessage(outboxOID, sampleRow()...)) - publishedAt
	want := new(decode.Rows)
	feed(t, started(t, withAttachment...), want, whole)
	for n := 10; n < len(whole); n++ {
		d, rows := started(t, withAttachment...), new(decode.Rows)
		require.Equal(t, decode.Row, decodeHead(t, d, rows, whole, n))
		assert.Equal(t, at(sampleLSN, 1), d.Last())
		if n >= complete {
			require.Equal(t, want, rows, "%d bytes", n)
			continue
		}
		require.Zero(t, rows.Len())
		require.Len(t, rows.Rejects, 1)
		r := rows.Rejects[0]
		assert.Equal(t, at(sampleLSN, 1), r.Position)
		assert.Contains(t, r.Reason, "ends too far behind the beginning of a row that is too long")
		tuple, err := decode.ParseTuple(r.Raw)
		require.NoError(t, err)
		assert.Equal(t, len(whole), tuple.BeginningOf)
		var kept []byte
		for _, c := range tuple.Columns {
			kept = append(kept, c.Value...)
		}
		assert.LessOrEqual(t, len(kept), n)
		require.ErrorContains(t, tuple.Append(rows, r.Position, 0), "only the beginning of its")
		require.Zero(t, rows.Len(), "half an event is none")
	}
}

func TestTheBeginningOfALargeRowIsKept(t *testing.T) {
	t.Parallel()
	const head = 2 << 20
	large := asText(`"` + strings.Repeat("x", 4<<20) + `"`)
	for column, seen := range map[string]int{"event_type": 1, "environment": 3, "event_context": 4, "trace_context": 6} {
		whole := insertMessage(outboxOID, with(column, large)...)
		d, rows := started(t, outbox...), new(decode.Rows)
		require.Equal(t, decode.Row, decodeHead(t, d, rows, whole, head))
		require.Len(t, rows.Rejects, 1, column)
		r := rows.Rejects[0]
		assert.Equal(t, sampleID, r.ID)
		assert.LessOrEqual(t, len(r.Type), event.MaxTypeBytes)
		assert.Contains(t, r.Reason, "column "+column+" ends too far")
		assert.Contains(t, r.Reason, "the first 1056770 are kept")
		assert.Less(t, len(r.Raw), 2<<20, "of base64")
		tuple, err := decode.ParseTuple(r.Raw)
		require.NoError(t, err)
		require.Len(t, tuple.Columns, seen+1)
		assert.Equal(t, column, tuple.Columns[seen].Name)
		assert.True(t, strings.HasPrefix(string(large.value), string(tuple.Columns[seen].Value)))
		assert.Greater(t, len(tuple.Columns[seen].Value), 1<<20)
	}
}

func TestTheBeginningOfALargeMessageIsKept(t *testing.T) {
	t.Parallel()
	const head = 2 << 20
	for name, content := range map[string]string{
		"an event":           goodContent + strings.Repeat(" ", 4<<20),
		"a line without end": strings.Repeat("x", 4<<20),
		"beginning is valid": goodContent + strings.Repeat(" ", head+100-len(goodContent)),
	} {
		d, rows := reading(decode.Position{}), new(decode.Rows)
		feed(t, d, rows, beginMessage(sampleLSN, sampleTime))
		require.Equal(t, decode.Row, decodeHead(t, d, rows, published(content), head), name)
		require.Zero(t, rows.Len(), name)
		require.Len(t, rows.Rejects, 1, name)
		tuple, err := decode.ParseTuple(rows.Rejects[0].Raw)
		require.NoError(t, err)
		assert.Equal(t, len(content), tuple.BeginningOf)
		assert.True(t, strings.HasPrefix(content, string(tuple.Columns[0].Value)))
		require.ErrorContains(t, tuple.Append(rows, at(1, 1), 0), "only the beginning of its")

		for _, other := range []string{"", "other", "diehard.event2", strings.Repeat("x", 3<<20)} {
			require.Equal(t, decode.Other, decodeHead(t, d, rows, logicalMessage(1, other, content), head))
		}
		require.Equal(t, decode.NonTransactional, decodeHead(t, d, rows, logicalMessage(0, event.MessagePrefix, content), head))
		require.Len(t, rows.Rejects, 1)
		require.EqualValues(t, 1, d.Last().Seq)
	}
}
