// Package batch gathers decoded rows and knows what may be acknowledged once
// they are durable. It does no I/O and keeps no clock.
package batch

import (
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
)

// Limits bound a batch. A batch may exceed Bytes by its last row.
type Limits struct {
	Rows  int // at least 1
	Bytes int // at least 1
}

// Batch is what one insert writes: rows in stream order and the position they
// reach. Batches are reused; see Reset. Not safe for concurrent use.
type Batch struct {
	decode.Rows

	// Confirm is the highest LSN that may be acknowledged once this batch and
	// every earlier one are durable; 0 when the batch completes no transaction
	// and holds no idle position.
	Confirm pglogrepl.LSN

	// Skipped are rows before those of the batch that are to be found in ClickHouse already.
	Skipped []Skipped

	// Urgent: Confirm is to be confirmed now, because the stream ends or the server waits for it.
	Urgent bool

	// Received counts the bytes of pgoutput this batch was made of.
	Received int
}

// Skipped is a row that the decoder has skipped.
type Skipped struct {
	decode.Position
	ID [16]byte // zero: unknown
}

// New returns an empty Batch with room for the contexts that limits allow, so
// that they are not copied again and again while the buffer grows. The other
// columns find their size with the first batches.
func New(l Limits) *Batch {
	b := &Batch{}
	b.Context = make([]byte, 0, l.Bytes+spare(l))
	return b
}

// spare is room for the row that makes a batch full, of the largest size or that of a small batch.
func spare(l Limits) int { return min(l.Bytes, 1<<20+16) }

// Commit notes the end of a transaction whose rows are in this batch or earlier
// ones. end must be Commit.TransactionEndLSN.
func (b *Batch) Commit(end pglogrepl.LSN) { b.confirm(end) }

// Keepalive notes a keepalive: the server has sent everything up to walEnd. It must
// not be called inside a transaction, where walEnd confirms nothing new.
func (b *Batch) Keepalive(walEnd pglogrepl.LSN) { b.confirm(walEnd) }

// confirm never moves Confirm back: the first keepalive of a session may lie behind
// what was acknowledged in the session before.
func (b *Batch) confirm(lsn pglogrepl.LSN) { b.Confirm = max(b.Confirm, lsn) }

// Full reports that the batch must be handed over before another row is added.
func (b *Batch) Full(l Limits) bool {
	return b.Len()+len(b.Rejects) >= l.Rows || b.Bytes() >= l.Bytes || len(b.Skipped) >= l.Rows || b.Rows.Full()
}

// Pending reports that handing the batch over would change anything.
func (b *Batch) Pending() bool { return !b.Empty() || b.Confirm != 0 || len(b.Skipped) > 0 }

// Reset empties the batch. A buffer that a row beyond the size limit has blown up
// is let go, so that memory follows the bounds and not the largest row seen.
func (b *Batch) Reset(l Limits) {
	if cap(b.Context) > 2*(l.Bytes+spare(l)) {
		b.Context = make([]byte, 0, l.Bytes+spare(l))
	}
	b.Rows.Reset()
	b.Confirm, b.Received, b.Urgent, b.Skipped = 0, 0, false, nil
}
