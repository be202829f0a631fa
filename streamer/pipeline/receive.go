package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/failpoint"
	"diehard/streamer/replication"
)

const (
	// maxStep bounds one wait for the server, so that a stop is noticed.
	maxStep = time.Second
	// idleInterval is the shortest time between positions that come without rows:
	// the writer asks PostgreSQL before it confirms one.
	idleInterval = 100 * time.Millisecond
)

// receiver owns the reading side of the connection and the open batch.
//
// When to hand the batch over: when it is full; or when there is nothing more to
// read, the writer is idle, and the insert before began FlushInterval ago. So a
// lone event goes out immediately, a steady trickle once an interval, a busy stream
// in full batches; and while ClickHouse is slow the batch grows instead of
// becoming several small parts.
//
// There are two batches: the open one, and one that the writer has or has
// emptied. Getting the other one in exchange is how the writer is known to be idle.
type receiver struct {
	*session
	decoder   *decode.Decoder
	confirmed *confirmed
	ready     chan<- *batch.Batch
	free      <-chan *batch.Batch
	waiting   *atomic.Bool // a batch is due and the writer is busy

	open     *batch.Batch
	whole    pglogrepl.LSN // every transaction before it was read to its end
	rows     int64         // read before the open batch
	received int64         // bytes sent for them
	rowSince time.Time     // since when open holds rows, as far as waits can tell; zero without rows
	handed   time.Time     // when rows were last handed over
	idle     time.Time     // when a position without rows was
	urgent   bool          // the server waits for a confirmation, as at its shutdown
	strayed  time.Time     // when the log last told of a stray event
	heard    time.Time     // when the server was last heard of
	fresh    bool          // a message came since the last wait
}

// run reads until reading ends, and then hands over what is complete. Only work's
// end makes it drop the open batch.
func (r *receiver) run(reading, work context.Context) error {
	r.open, r.heard = batch.New(r.cfg.Limits), time.Now()
	for reading.Err() == nil {
		deadline := time.Time{}
		if !r.conn.Buffered() {
			var err error
			if deadline, err = r.beforeWait(time.Now()); err != nil {
				return err
			}
		}
		msg, err := r.conn.Receive(deadline)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return err
		}
		r.fresh = true
		if err := r.take(msg); err != nil {
			return err
		}
		if r.open.Full(r.cfg.Limits) {
			r.handOver(work)
		}
	}
	failpoint.Hit("draining")
	r.drain(work)
	return nil
}

// drain hands over what is to land before the end. Of a transaction that has not
// been read to its end nothing more: it comes again, and the outbox can be divided
// into shards where no transaction has landed in part.
func (r *receiver) drain(work context.Context) {
	if r.decoder.InTransaction() {
		r.open.Cut(r.decoder.Last().LSN)
	}
	if r.open.Pending() && work.Err() == nil {
		r.handOver(work)
	}
}

func (r *receiver) take(msg replication.Message) error {
	if msg.Kind == replication.Keepalive {
		if err := r.decoder.Passed(msg.WALEnd); err != nil {
			return replication.RefuseHistory(err)
		}
		if !r.decoder.InTransaction() {
			r.open.Idle(msg.WALEnd)
			r.whole = max(r.whole, msg.WALEnd)
		}
		r.progress.serverEnd.Store(uint64(msg.WALEnd))
		if msg.ReplyRequested {
			r.urgent = true
			r.confirmed.signal()
		}
		return nil
	}
	kind, err := r.decoder.Decode(msg.Data, &r.open.Rows)
	if errors.Is(err, decode.ErrHistory) {
		return replication.RefuseHistory(err)
	}
	if err != nil {
		return err
	}
	r.open.Received += len(msg.Data)
	switch kind {
	case decode.Commit:
		r.open.Commit(r.decoder.CommitEnd())
		r.whole = r.decoder.CommitEnd()
	case decode.Stray:
		r.stray(time.Now())
	default:
	}
	return nil
}

// strayNotice is how often the log tells of stray events.
const strayNotice = 10 * time.Second

// stray tells of an event that was not published transactionally: PostgreSQL gives
// it no place in the stream, so that it can be neither delivered once nor set aside.
func (r *receiver) stray(now time.Time) {
	n := r.progress.strays.Add(1)
	if now.Sub(r.strayed) < strayNotice {
		return
	}
	r.strayed = now
	r.log.Error("DROPPED an event in a message that is not transactional, which cannot be delivered exactly once: "+
		"call pg_logical_emit_message(true, …), or publish_event_message", "dropped_since_start", n)
}

// beforeWait is called when nothing can be read without waiting. It hands the
// batch over if that is due, and returns until when to wait.
func (r *receiver) beforeWait(now time.Time) (time.Time, error) {
	if err := r.checkServer(now); err != nil {
		return now, err
	}
	r.publish()
	if !r.open.Pending() {
		return now.Add(r.step()), nil
	}
	due := r.due(now)
	if due.After(now) {
		return due, nil
	}
	select {
	case empty := <-r.free:
		r.exchange(now, empty)
		return now.Add(r.step()), nil
	default: // the writer wakes us when it is done
		r.waiting.Store(true)
		return now.Add(min(maxStep, r.cfg.FlushInterval)), nil
	}
}

// due is when the open batch should go out if nothing more arrives.
func (r *receiver) due(now time.Time) time.Time {
	switch {
	case r.urgent:
		return now
	case r.open.Empty(): // a position alone costs no insert
		return r.idle.Add(idleInterval)
	}
	if r.rowSince.IsZero() {
		r.rowSince = now
	}
	due := r.handed.Add(r.cfg.FlushInterval)
	if r.decoder.InTransaction() { // its end is likely on the way
		due = r.rowSince.Add(r.cfg.FlushInterval)
	}
	return due
}

// handOver waits for the writer to take the batch. Meanwhile nothing is read,
// the server's socket fills, and the server waits.
func (r *receiver) handOver(work context.Context) {
	r.publish()
	select {
	case empty := <-r.free:
		now := time.Now()
		r.exchange(now, empty)
		r.heard = now // what came while we were not reading counts as heard
	case <-work.Done():
	}
}

// exchange hands the open batch over and goes on with an empty one.
func (r *receiver) exchange(now time.Time, empty *batch.Batch) {
	held := measure(r.open)
	if held.rows > 0 {
		r.handed = now
	} else {
		r.idle = now
	}
	r.rows += held.rows
	r.received += held.received
	r.progress.handed(held)
	r.ready <- r.open // has room: the writer has nothing
	r.open = empty
	r.rowSince, r.urgent = time.Time{}, false
	r.waiting.Store(false)
}

// step is how long to wait when nothing is due.
func (r *receiver) step() time.Duration { return min(maxStep, r.cfg.SenderTimeout/5) }

// checkServer asks a silent server for a sign of life, and gives it up when none
// comes. A walsender that works through a large transaction of which nothing is
// sent looks at our messages only now and then, twice in SenderTimeout, so it is asked often and
// waited for twice as long. A standby does not wait for that: the server's own timeout frees the slot.
func (r *receiver) checkServer(now time.Time) error {
	if r.fresh {
		r.heard, r.fresh = now, false
		return nil
	}
	silence := now.Sub(r.heard)
	if silence > 2*r.cfg.SenderTimeout {
		return fmt.Errorf("no sign of life from PostgreSQL for %s", silence.Round(time.Second))
	}
	if silence > r.cfg.SenderTimeout/4 {
		r.confirmed.ask.Store(true)
		r.confirmed.signal()
	}
	return nil
}

// publish tells observers how far reading has come.
func (r *receiver) publish() {
	open := measure(r.open)
	r.progress.reading(r.rows+open.rows, r.received+open.received, open)
	r.progress.decoded.Store(uint64(r.whole))
	r.progress.received.Store(uint64(max(r.whole, r.decoder.Last().LSN)))
}
