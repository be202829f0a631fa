package decode_test

import (
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

func at(lsn pglogrepl.LSN, seq uint32) decode.Position { return decode.Position{LSN: lsn, Seq: seq} }

func TestPositionsGrowByTransactionThenByRow(t *testing.T) {
	t.Parallel()
	order := []decode.Position{{}, at(0, 1), at(1, 0), at(1, 1), at(1, 2), at(2, 1), at(1<<63, 0), at(1<<64-1, 1<<32-1)}
	for i, p := range order {
		for j, q := range order {
			assert.Equal(t, i > j, p.After(q), "%v after %v", p, q)
		}
	}
}

// Whatever the resume position, exactly the rows behind it come out, with the
// positions they have in the stream.
func TestRowsUpToTheResumePositionAreSkipped(t *testing.T) {
	t.Parallel()
	all := []decode.Position{at(100, 1), at(100, 2), at(100, 3), at(200, 1), at(200, 2), at(300, 1)}
	resumes := append([]decode.Position{{}, at(100, 0), at(150, 7), at(400, 1)}, all...)
	for _, resume := range resumes {
		d, rows := decode.NewDecoder(resume), new(decode.Rows)
		feed(t, d, rows, relationMessage(outboxOID, "outbox", outbox...))
		var want []decode.Position
		for i, p := range all {
			if p.Seq == 1 {
				feed(t, d, rows, beginMessage(p.LSN, sampleTime))
				assert.True(t, d.InTransaction())
				assert.Equal(t, at(p.LSN, 0), d.Last())
			}
			row := sampleRow()
			if i%2 == 1 { // rejects count like rows
				row = with("event_type", null)
			}
			kind := feed(t, d, rows, insertMessage(outboxOID, row...))
			assert.Equal(t, p, d.Last(), "skipped or not")
			if p.After(resume) {
				assert.Equal(t, decode.Row, kind)
				want = append(want, p)
			} else {
				assert.Equal(t, decode.Skipped, kind)
			}
			if i+1 == len(all) || all[i+1].LSN != p.LSN {
				assert.Equal(t, decode.Commit, feed(t, d, rows, commitMessage(p.LSN, p.LSN+48, sampleTime)))
				assert.Equal(t, p.LSN+48, d.CommitEnd(), "a skipped transaction is confirmed too")
				assert.False(t, d.InTransaction())
			}
		}
		assert.Equal(t, want, positions(rows), "resumed at %v", resume)
		if len(want) > 0 {
			assert.Equal(t, want[0], rows.First())
			assert.Equal(t, want[len(want)-1], rows.Last())
		}
	}
}

// positions lists rows and rejects in stream order.
func positions(rows *decode.Rows) []decode.Position {
	var all []decode.Position
	rejects := rows.Rejects
	for i := range rows.Len() {
		for len(rejects) > 0 && rows.Position(i).After(rejects[0].Position) {
			all, rejects = append(all, rejects[0].Position), rejects[1:]
		}
		all = append(all, rows.Position(i))
	}
	for _, r := range rejects {
		all = append(all, r.Position)
	}
	return all
}

// A row that is skipped is not decoded: a row that is already written must not stop a restart.
func TestSkippedRowsAreNotDecoded(t *testing.T) {
	t.Parallel()
	d, rows := decode.NewDecoder(at(sampleLSN, 1)), new(decode.Rows)
	feed(t, d, rows, relationMessage(outboxOID, "outbox", outbox...), beginMessage(sampleLSN, sampleTime))
	assert.Equal(t, decode.Skipped, feed(t, d, rows, insertMessage(outboxOID, null)))
	assert.True(t, rows.Empty())
	_, ok := d.SkippedID()
	assert.False(t, ok)
}

// Skipped rows and messages are read for their ids if that is asked for, and what cannot be read is no error.
func TestSkippedRowsAreIdentified(t *testing.T) {
	t.Parallel()
	d, rows := decode.NewDecoder(at(sampleLSN, 4)), new(decode.Rows)
	d.AcceptMessagesFrom(1)
	d.IdentifySkipped()
	feed(t, d, rows, relationMessage(outboxOID, "outbox", outbox...), beginMessage(sampleLSN, sampleTime))
	for _, c := range []struct {
		message []byte
		known   bool
	}{
		{insertMessage(outboxOID, sampleRow()...), true},
		{insertMessage(outboxOID, null), false},
		{published(goodContent), true},
		{published("nonsense"), false},
	} {
		assert.Equal(t, decode.Skipped, feed(t, d, rows, c.message))
		id, ok := d.SkippedID()
		assert.True(t, ok)
		assert.Equal(t, c.known, id != [16]byte{}, "%v", d.Last())
	}
	assert.True(t, rows.Empty())
}

func TestEmptyRowsHaveNoPosition(t *testing.T) {
	t.Parallel()
	rows := new(decode.Rows)
	assert.True(t, rows.Empty())
	assert.Equal(t, decode.Position{}, rows.First())
	assert.Equal(t, decode.Position{}, rows.Last())
	assert.Zero(t, rows.Bytes())
}

func TestResetKeepsNothing(t *testing.T) {
	t.Parallel()
	d, rows := started(t, outbox...), new(decode.Rows)
	feed(t, d, rows, insertMessage(outboxOID, sampleRow()...), insertMessage(outboxOID, with("id", null)...))
	require.Positive(t, rows.Bytes())
	rows.Reset()
	assert.True(t, rows.Empty())
	assert.Zero(t, rows.Bytes())
	assert.Equal(t, decode.Position{}, rows.Last())
	feed(t, d, rows, insertMessage(outboxOID, with("event_type", binaryString("other"))...))
	assert.Equal(t, []string{"other"}, rows.Type.Values)
	assert.Equal(t, []uint16{0}, rows.Type.Keys)
	assert.Equal(t, `{"a": 1}`, string(rows.ContextAt(0)))
	assert.Equal(t, at(sampleLSN, 3), rows.First())
}

// The message may be overwritten as soon as Decode has returned.
func TestTheMessageIsNotRetained(t *testing.T) {
	t.Parallel()
	d, rows := started(t, outbox...), new(decode.Rows)
	for _, row := range [][]datum{sampleRow(), with("event_date_time", null)} {
		m := insertMessage(outboxOID, row...)
		feed(t, d, rows, m)
		for i := range m {
			m[i] = 0xff
		}
	}
	assert.Equal(t, sampleID, rows.IDAt(0))
	assert.Equal(t, []string{"user_created"}, rows.Type.Values)
	assert.Equal(t, []string{"Production"}, rows.Environment.Values)
	assert.Equal(t, `{"a": 1}`, string(rows.ContextAt(0)))
	assert.Equal(t, []string{sampleTrace}, rows.Traces)
	assert.Equal(t, "user_created", rows.Rejects[0].Type)
	tuple, err := decode.ParseTuple(rows.Rejects[0].Raw)
	require.NoError(t, err)
	assert.Equal(t, `{"a": 1}`, string(tuple.Columns[4].Value))
}
