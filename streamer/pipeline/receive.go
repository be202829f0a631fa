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
	// Rows that come late, because of a backlog, wait for a full batch by lateShare of their
	// lateness, and by lateWait at most.
	lateShare = 8
	lateWait  = time.Second
)

// receiver owns the reading side of the connection and the open batch.
//
// When to hand the batch over: when it is full; or when there is nothing more to
// read, the writer is idle, and the insert before began FlushInterval ago, or longer
// while a backlog is read (see flushDeadline). So a lone event goes out immediately, a
// steady stream once an interval, a backlog in full batches; and while ClickHouse is slow
// the batch grows instead of becoming several small parts.
//
// Invariants:
//   - There are two batches: the open one, and one that the writer has or has emptied.
//     Getting the other one back is how the writer is known to be idle.
//   - The open batch holds every row behind those handed over, and its position covers no
//     row that is not in it or before it.
//   - The first batch is the range of repeat, whatever the limits, if there is one.
type receiver struct {
	s         *session
	decoder   *decode.Decoder
	confirmed *confirmed
	ready     chan<- *batch.Batch
	free      <-chan *batch.Batch
	waiting   *atomic.Int32       // see waitsReading
	repeat    *replication.Intent // the range that the open batch must become; nil for none

	open              *batch.Batch
	completeLSN       pglogrepl.LSN // every transaction before it was read to its end
	rows              int64         // read before the open batch
	received          int64         // bytes sent for them
	late              time.Duration // how long after its commit the server sent what was read last
	rowSince          time.Time     // since when open holds rows, as far as waits can tell; zero without rows
	lastHandoff       time.Time     // when rows were last handed over
	lastIdleHandoff   time.Time     // when a position without rows was
	replyRequested    bool          // the server waits for a confirmation, as at its shutdown
	droppedLoggedAt   time.Time     // when the log last said that a message was dropped
	lastMessageAt     time.Time     // when the server last sent something
	receivedSinceWait bool          // a message came since the last wait
}

// What a receiver does that has a batch for the writer, which is busy; 0 without one.
const (
	waitsReading = iota + 1 // it reads on, and is to be woken
	waitsBlocked
)

// run reads until reading ends, and then hands over what is complete. Only work's
// end makes it drop the open batch.
func (r *receiver) run(reading, work context.Context) error {
	defer func() { r.publish() }() // how far it came until it failed
	r.open, r.lastMessageAt = batch.New(r.s.cfg.Limits), time.Now()
	for reading.Err() == nil && work.Err() == nil {
		deadline := time.Time{}
		if !r.s.conn.Buffered() {
			var err error
			if deadline, err = r.beforeWait(time.Now()); err != nil {
				return err
			}
		}
		msg, err := r.s.conn.Receive(deadline)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.receivedSinceWait = r.receivedSinceWait || r.s.conn.Progressed()
			continue
		}
		if err != nil {
			return err
		}
		r.receivedSinceWait = true
		if err := r.handleMessage(msg); err != nil {
			return err
		}
		if r.repeat == nil && r.open.Full(r.s.p.size.limits(r.s.cfg.Limits)) || r.repeated() {
			r.flushBlocking(work)
		}
	}
	failpoint.Hit("draining")
	r.drain(work)
	return nil
}

// drain hands over what is to be written before the end. Of a transaction that has not
// been read to its end nothing more: it comes again, and the outbox can be sharded
// where no transaction is written in part. Nor of a range that is to be repeated.
func (r *receiver) drain(work context.Context) {
	if r.repeat != nil {
		return
	}
	if r.decoder.InTransaction() {
		r.open.Cut(r.decoder.Last().LSN)
	}
	if uint64(r.completeLSN) > r.confirmed.lsn.Load() {
		r.open.Keepalive(r.completeLSN)
	}
	r.open.Urgent = true
	if r.open.Pending() && work.Err() == nil {
		r.flushBlocking(work)
	}
}

// repeated reports that the open batch is the range of repeat, which is over then.
func (r *receiver) repeated() bool {
	if r.repeat == nil || r.open.Last() != decode.Position(r.repeat.Through) {
		return false
	}
	r.repeat = nil
	return true
}

// checkRepeat refuses a stream that has passed the range of repeat and has not brought it.
func (r *receiver) checkRepeat(at decode.Position) error {
	if r.repeat == nil || !at.After(decode.Position(r.repeat.Through)) {
		return nil
	}
	return replication.DivergedHistory(fmt.Errorf("%w: the intent ends at %s, and the stream has no event there", decode.ErrDivergedHistory, r.repeat.Through))
}

func (r *receiver) handleMessage(msg replication.Message) error {
	if msg.Kind == replication.Keepalive {
		if err := r.decoder.Advance(msg.WALEnd); err != nil {
			return replication.DivergedHistory(err)
		}
		if err := r.checkRepeat(decode.Position{LSN: msg.WALEnd}); err != nil {
			return err
		}
		if !r.decoder.InTransaction() {
			r.open.Keepalive(msg.WALEnd)
			r.completeLSN = max(r.completeLSN, msg.WALEnd)
			r.late = 0 // the server has no more
		}
		if msg.ReplyRequested {
			r.replyRequested = true
			r.confirmed.signal()
		}
		return nil
	}
	kind, err := r.decoder.DecodeHead(msg.Data, msg.Size, &r.open.Rows)
	if errors.Is(err, decode.ErrDivergedHistory) {
		return replication.DivergedHistory(err)
	}
	if err != nil {
		return err
	}
	r.open.Received += msg.Size
	r.late = r.lateness(msg.Sent)
	if err := r.checkRepeat(r.decoder.Last()); err != nil {
		return err
	}
	switch kind {
	case decode.Commit:
		r.open.Commit(r.decoder.CommitEnd())
		r.completeLSN = r.decoder.CommitEnd()
		r.s.p.silences = 0
	case decode.NonTransactional:
		r.countDropped(time.Now())
	case decode.Skipped:
		if id, ok := r.decoder.SkippedID(); ok {
			r.open.Skipped = append(r.open.Skipped, batch.Skipped{Position: r.decoder.Last(), ID: id})
		}
	default:
	}
	return nil
}

// droppedLogInterval is the shortest time between two log entries about dropped messages.
const droppedLogInterval = 10 * time.Second

// countDropped reports an event that was not published transactionally: PostgreSQL gives
// it no position in the stream, so that it can be neither delivered once nor kept as a dead letter.
func (r *receiver) countDropped(now time.Time) {
	n := r.s.progress.droppedMessages.Add(1)
	if now.Sub(r.droppedLoggedAt) < droppedLogInterval {
		return
	}
	r.droppedLoggedAt = now
	r.s.log.Error("DROPPED an event in a message that is not transactional, which cannot be delivered exactly once: "+
		"call pg_logical_emit_message(true, …), or publish_event_message", "dropped_since_start", n)
}

// beforeWait is called when nothing can be read without waiting. It hands the
// batch over if that is due, and returns until when to wait.
func (r *receiver) beforeWait(now time.Time) (time.Time, error) {
	if err := r.checkServer(now); err != nil {
		return now, err
	}
	r.publish()
	if !r.open.Pending() || r.repeat != nil {
		return now.Add(r.pollTimeout()), nil
	}
	due := r.flushDeadline(now)
	if due.After(now) {
		return now.Add(min(due.Sub(now), r.pollTimeout())), nil
	}
	select {
	case empty := <-r.free:
		r.swapBatches(now, empty)
		return now.Add(r.pollTimeout()), nil
	default: // the writer wakes us when it is done
		r.waiting.Store(waitsReading)
		return now.Add(min(maxStep, r.s.cfg.FlushInterval)), nil
	}
}

// flushDeadline is when the open batch should go out if nothing more arrives.
func (r *receiver) flushDeadline(now time.Time) time.Time {
	switch {
	case r.replyRequested:
		return now
	case r.open.Empty(): // a position alone costs no insert
		return r.lastIdleHandoff.Add(idleInterval)
	}
	if r.rowSince.IsZero() {
		r.rowSince = now
	}
	since, interval := r.lastHandoff, r.s.cfg.FlushInterval
	if r.decoder.InTransaction() { // its end is likely on the way
		since = r.rowSince
	}
	late := min(r.late/lateShare, lateWait)
	longer := min(late-interval, r.lastMessageAt.Sub(since)) // as long as more comes
	return since.Add(interval + max(0, longer))
}

// lateness is 0 where the two times are not by the same clock.
func (r *receiver) lateness(sent int64) time.Duration {
	if r.decoder.Foreign() {
		return 0
	}
	return time.Duration(sent-r.decoder.CommitTime()) * time.Microsecond
}

// flushBlocking waits for the writer to take the batch. Meanwhile nothing is read,
// the server's socket fills, and the server waits.
func (r *receiver) flushBlocking(work context.Context) {
	r.publish()
	r.waiting.Store(waitsBlocked)
	select {
	case empty := <-r.free:
		now := time.Now()
		r.swapBatches(now, empty)
		r.lastMessageAt = now // the server may have sent something while nothing was read
	case <-work.Done():
	}
}

// swapBatches hands the open batch over and goes on with an empty one.
func (r *receiver) swapBatches(now time.Time, empty *batch.Batch) {
	held := measure(r.open)
	r.open.Urgent = r.open.Urgent || r.replyRequested
	if held.rows > 0 {
		r.lastHandoff = now
	} else {
		r.lastIdleHandoff = now
	}
	r.rows += held.rows
	r.received += held.received
	r.s.progress.handed(held)
	r.ready <- r.open // has room: the writer has nothing
	r.open = empty
	r.rowSince, r.replyRequested = time.Time{}, false
	r.waiting.Store(0)
}

// pollTimeout is how long to wait when nothing is due.
func (r *receiver) pollTimeout() time.Duration { return min(maxStep, r.s.cfg.SenderTimeout/5) }

// checkServer asks a silent server for a keepalive, and gives it up when none
// comes. A walsender that works through a large transaction of which nothing is
// sent looks at our messages only now and then, twice in SenderTimeout, so it is asked often and
// waited for twice as long. A standby does not wait for that: the server's own timeout frees the slot.
// While it reads a single huge message it does not look at all, for as long as that takes: each
// silence that ended a session makes the next one's limit twice as long, until a transaction is complete.
func (r *receiver) checkServer(now time.Time) error {
	if r.receivedSinceWait {
		r.lastMessageAt, r.receivedSinceWait = now, false
		return nil
	}
	silence := now.Sub(r.lastMessageAt)
	if silence > r.s.cfg.SenderTimeout<<(1+min(r.s.p.silences, maxSilences)) {
		r.s.p.silences++
		return fmt.Errorf("PostgreSQL has sent nothing for %s", silence.Round(time.Second))
	}
	if silence > r.s.cfg.SenderTimeout/4 {
		r.confirmed.ask.Store(true)
		r.confirmed.signal()
	}
	return nil
}

// maxSilences bounds by how many doublings a session may be silent for longer.
const maxSilences = 6

// publish reports to observers how far reading has come.
func (r *receiver) publish() {
	open := measure(r.open)
	r.s.progress.reading(r.rows+open.rows, r.received+open.received, open)
	r.s.progress.decoded.Store(uint64(r.completeLSN))
	r.s.progress.received.Store(uint64(max(r.completeLSN, r.decoder.Last().LSN)))
}
