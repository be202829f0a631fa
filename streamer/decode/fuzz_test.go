package decode_test

import (
	"slices"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/event"
	"diehard/streamer/decode"
)

// FuzzDecode feeds streams, framed like the golden recordings. For every message
// there is an error or a valid result, never a panic, and a length that a
// message claims decides nothing about what is allocated.
func FuzzDecode(f *testing.F) {
	for _, version := range embedded.PostgresVersions {
		for _, mode := range modes {
			for _, transaction := range transactions(messagesOf(f, goldenFile(version, mode))) {
				f.Add(frame(transaction), uint64(0), uint32(0))
			}
		}
	}
	small := frame([][]byte{
		relationMessage(outboxOID, "outbox", outbox...), beginMessage(sampleLSN, sampleTime),
		insertMessage(outboxOID, sampleRow()...), insertMessage(outboxOID, with("id", null)...),
		insertMessage(outboxOID, sampleRow()...), commitMessage(sampleLSN, sampleEnd, sampleTime),
	})
	f.Add(small, uint64(0), uint32(0))
	f.Add(small, uint64(sampleLSN), uint32(1))
	for _, content := range append(badContents(), goodContent, fullContent) {
		f.Add(frame([][]byte{
			relationMessage(outboxOID, "outbox", outbox...), beginMessage(sampleLSN, sampleTime),
			logicalMessage(1, event.MessagePrefix, content), insertMessage(outboxOID, sampleRow()...),
			commitMessage(sampleLSN, sampleEnd, sampleTime), logicalMessage(0, event.MessagePrefix, content),
		}), uint64(0), uint32(0))
	}
	f.Fuzz(func(t *testing.T, stream []byte, lsn uint64, seq uint32) {
		messages, _ := unframe(stream)
		before := allocatedBytes()
		rows, budget := decodeAll(t, messages, at(pglogrepl.LSN(lsn), seq))
		assert.LessOrEqual(t, allocatedBytes()-before, budget, "bytes allocated")
		checkRows(t, rows)
	})
}

// transactions cuts a recording into streams of one transaction, each with the
// relations that were announced before. Small streams are what a fuzzer is good at.
func transactions(messages [][]byte) [][][]byte {
	var all [][][]byte
	var relations, open [][]byte
	for _, m := range messages {
		switch m[0] {
		case 'B':
			open = slices.Clone(relations)
		case 'R':
			relations = slices.DeleteFunc(relations, func(r []byte) bool { return string(r[1:5]) == string(m[1:5]) })
			relations = append(relations, m)
		}
		open = append(open, m)
		if m[0] == 'C' && len(frame(open)) < 4096 {
			all = append(all, open)
		}
	}
	return all
}

// decodeAll checks each step and returns what came out, and how many bytes may
// have been allocated for it.
func decodeAll(t *testing.T, messages [][]byte, resume decode.Position) (*decode.Rows, uint64) {
	t.Helper()
	d, rows := decode.NewDecoder(resume), new(decode.Rows)
	d.AcceptMessagesFrom(1)
	budget, announced := uint64(256<<10), 0
	for _, m := range messages {
		if len(m) > 0 && m[0] == 'R' {
			announced += len(m)
		}
		// A rejected row is kept with the names of its columns.
		budget += 4096 + 64*uint64(len(m)+announced)
		open, before, count, confirmed := d.InTransaction(), d.Last(), rows.Len()+len(rows.Rejects), d.CommitEnd()
		kind, err := d.Decode(m, rows)
		added := rows.Len() + len(rows.Rejects) - count
		if err != nil {
			require.Zero(t, added, "an error adds nothing")
			continue
		}
		switch kind {
		case decode.Row, decode.Skipped:
			require.Equal(t, at(before.LSN, before.Seq+1), d.Last())
			require.Equal(t, kind == decode.Row, d.Last().After(resume))
			require.Equal(t, kind == decode.Row, added == 1)
			require.True(t, open && d.InTransaction())
		case decode.Begin:
			require.True(t, !open && d.InTransaction())
			require.Zero(t, d.Last().Seq)
		case decode.Commit:
			require.True(t, open && !d.InTransaction())
		case decode.Other, decode.NonTransactional:
			require.Equal(t, before, d.Last())
			require.Equal(t, open, d.InTransaction())
		}
		if kind != decode.Commit {
			require.Equal(t, confirmed, d.CommitEnd(), "only a commit may be confirmed")
		}
		if rows.Full() {
			rows.Reset()
		}
	}
	return rows, budget
}

// checkRows makes sure that whatever was accepted is fit for ClickHouse, and
// that each row can be rebuilt from its dead letter.
func checkRows(t *testing.T, rows *decode.Rows) {
	t.Helper()
	n := rows.Len()
	for name, got := range map[string]int{
		"id": len(rows.ID) / 16, "type": len(rows.Type.Keys), "time": len(rows.DateTime), "environment": len(rows.Environment.Keys),
		"context": len(rows.ContextEnd), "version": len(rows.MetadataVersion), "trace": len(rows.TraceID) / 16, "published by": len(rows.PublishedBy.Keys), "seq": len(rows.Seq), "commit time": len(rows.CommitTime),
	} {
		require.Equal(t, n, got, name)
	}
	earliest, latest := micros(t, "1900-01-01T00:00:00Z"), micros(t, "2299-12-31T23:59:59.999999Z")
	again := new(decode.Rows)
	for i := range n {
		require.NotEmpty(t, typeAt(rows, i))
		require.True(t, earliest <= rows.DateTime[i] && rows.DateTime[i] <= latest)
		require.LessOrEqual(t, rows.MetadataVersion[i], uint64(1<<63-1))
		require.NoError(t, rows.TupleAt(i).Append(again, rows.Position(i), rows.CommitTime[i]))
	}
	require.Equal(t, rows.Context, again.Context)
	require.Equal(t, rows.ID, again.ID)
	require.Equal(t, rows.TraceID, again.TraceID)
	require.Equal(t, rows.PublishedBy.Keys, again.PublishedBy.Keys)
	require.Equal(t, rows.Type.Keys, again.Type.Keys)
	for _, r := range rows.Rejects {
		require.NotEmpty(t, r.Reason)
		tuple, err := decode.ParseTuple(r.Raw)
		require.NoError(t, err)
		require.Error(t, tuple.Append(again, r.Position, r.CommitTime), "what is rejected stays rejected")
	}
}
