package batch_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/batch"
	"diehard/streamer/decode"
)

func event(kind string, size int) decode.Event {
	return decode.Event{Type: []byte(kind), Environment: []byte("Test"), Context: bytes.Repeat([]byte{'x'}, size)}
}

func add(b *batch.Batch, lsn pglogrepl.LSN, seq uint32, e decode.Event) {
	b.Append(decode.Position{LSN: lsn, Seq: seq}, 0, &e)
}

func TestABatchConfirmsItsHighestMark(t *testing.T) {
	t.Parallel()
	l := batch.Limits{Rows: 10, Bytes: 1000}
	b := batch.New(l)
	assert.False(t, b.Pending())
	assert.Zero(t, b.Confirm)
	b.Keepalive(500)
	assert.Equal(t, pglogrepl.LSN(500), b.Confirm, "an idle position needs no rows")
	assert.True(t, b.Pending())
	b.Keepalive(400)
	assert.Equal(t, pglogrepl.LSN(500), b.Confirm, "a late keepalive takes nothing back")
	add(b, 600, 1, event("a", 1))
	assert.Equal(t, pglogrepl.LSN(500), b.Confirm, "a row confirms nothing")
	b.Commit(630)
	assert.Equal(t, pglogrepl.LSN(630), b.Confirm)
	b.Received = 17
	b.Reset(l)
	assert.False(t, b.Pending())
	assert.Zero(t, b.Received)
}

// A batch with rows of an open transaction only is worth handing over, and confirms nothing.
func TestAPieceOfATransactionConfirmsNothing(t *testing.T) {
	t.Parallel()
	b := batch.New(batch.Limits{Rows: 10, Bytes: 1000})
	add(b, 600, 1, event("a", 1))
	assert.True(t, b.Pending())
	assert.Zero(t, b.Confirm)
}

// Rows that are to be looked for fill a batch like rows, and are worth handing over.
func TestSkippedRowsFillABatch(t *testing.T) {
	t.Parallel()
	l := batch.Limits{Rows: 2, Bytes: 1000}
	b := batch.New(l)
	b.Skipped = append(b.Skipped, batch.Skipped{Position: decode.Position{LSN: 1, Seq: 1}})
	assert.True(t, b.Pending())
	assert.True(t, b.Empty(), "nothing to write")
	assert.False(t, b.Full(l))
	b.Skipped = append(b.Skipped, batch.Skipped{Position: decode.Position{LSN: 1, Seq: 2}})
	assert.True(t, b.Full(l))
	b.Reset(l)
	assert.False(t, b.Pending())
}

func TestABatchIsFullByEachLimit(t *testing.T) {
	t.Parallel()
	byRows := batch.Limits{Rows: 3, Bytes: 1 << 20}
	b := batch.New(byRows)
	add(b, 1, 1, event("a", 1))
	b.Reject(decode.Reject{Raw: "{}"})
	assert.False(t, b.Full(byRows))
	add(b, 1, 3, event("a", 1))
	assert.True(t, b.Full(byRows), "rejects count")

	byBytes := batch.Limits{Rows: 1000, Bytes: 5000}
	b = batch.New(byBytes)
	add(b, 1, 1, event("a", 4800))
	assert.False(t, b.Full(byBytes))
	add(b, 1, 2, event("a", 300))
	assert.True(t, b.Full(byBytes))

	b = batch.New(byBytes)
	b.Reject(decode.Reject{Raw: string(make([]byte, 6000))})
	assert.True(t, b.Full(byBytes), "rejects take memory")

	byTypes := batch.Limits{Rows: 1 << 20, Bytes: 1 << 30}
	b = batch.New(byTypes)
	for i := range 1 << 16 {
		require.False(t, b.Full(byTypes))
		add(b, 1, uint32(i+1), event(fmt.Sprint(i), 0))
	}
	assert.True(t, b.Full(byTypes), "no room for another type")
}

// A row beyond the size limit must not decide for ever how much memory is held.
func TestResetLetsGoOfWhatAHugeRowTook(t *testing.T) {
	t.Parallel()
	l := batch.Limits{Rows: 10, Bytes: 100_000}
	b := batch.New(l)
	usual := cap(b.Context)
	add(b, 1, 1, event("a", 20<<20))
	require.Greater(t, cap(b.Context), 20<<20)
	b.Reset(l)
	assert.Equal(t, usual, cap(b.Context))
	add(b, 1, 1, event("a", 100))
	before := &b.Context[0]
	b.Reset(l)
	add(b, 1, 1, event("a", 100))
	assert.Same(t, before, &b.Context[0], "an ordinary buffer is used again")
}

// Not parallel: it counts allocations.
func TestFillingABatchAllocatesNothing(t *testing.T) {
	l := batch.Limits{Rows: 1000, Bytes: 1 << 20}
	b := batch.New(l)
	e := event("a", 250)
	fill := func() {
		for i := range l.Rows {
			b.Append(decode.Position{LSN: 1, Seq: uint32(i)}, 0, &e)
		}
		b.Reset(l)
	}
	fill()
	// The first row of a batch notes its type anew: one string for each dictionary.
	assert.LessOrEqual(t, testing.AllocsPerRun(10, fill), 2.0)
}

// One iteration is one row, as the receiver adds it.
func BenchmarkRow(b *testing.B) {
	l := batch.Limits{Rows: 50_000, Bytes: 8 << 20}
	open := batch.New(l)
	e := event("user_created", 250)
	b.SetBytes(250)
	b.ReportAllocs()
	for i := range b.N {
		open.Append(decode.Position{LSN: 1, Seq: uint32(i)}, 0, &e)
		if open.Full(l) {
			open.Commit(2)
			open.Reset(l)
		}
	}
}
