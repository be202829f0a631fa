package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/failpoint"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// insertion is a block and how to find out whether it is written.
type insertion struct {
	what    string
	table   string
	token   string
	refusal error // of the same block, see sink.Block; nil for none
	insert  func(context.Context, sink.InsertRequest) error
	written func(context.Context) (bool, error)
}

// insertUntilDurable tries an insertion of p until its block is written, or until it is
// refused permanently. What is written decides whenever the outcome is unknown, and whatever
// the code of an error: one that is raised behind our tables is a view's. before means that
// a predecessor has written it.
//
// Errors: failure.Poison when ClickHouse refuses the data, failure.Fatal, or errOwner.
func (w *writer) insertUntilDurable(ctx context.Context, p *part, in insertion) (before bool, err error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstWait, maxWait
	var last error
	for attempt := 1; ; attempt++ {
		if p.repeated || in.refusal != nil || attempt > 1 {
			there, err := w.look(ctx, in.what, in.written)
			switch {
			case err != nil:
				return false, w.lookFailed(ctx, last, err)
			case there:
				w.reportRefusal(ctx, in, cmp.Or(last, in.refusal))
				return attempt == 1 && p.repeated, nil
			case final(last):
				return false, last
			}
		}
		last = w.attempt(ctx, p, in, attempt)
		switch {
		case last == nil:
			return false, w.answered(ctx, p, in, attempt)
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case errors.Is(last, errOwner):
			return false, last
		case final(last): // an answer: nothing to wait for, but a look
			continue
		}
		w.retrying(in.what, attempt, last)
		if err := w.s.pause(ctx, wait.NextBackOff()); err != nil {
			return false, err
		}
	}
}

// answered looks once more at a block that was sent before: ClickHouse drops it when it
// remembers the token. Rows that are not there then were deleted or have expired, or the
// server lost them after it had noted the token. They are never sent under another token.
func (w *writer) answered(ctx context.Context, p *part, in insertion, attempt int) error {
	if attempt == 1 && !p.repeated && in.refusal == nil {
		return nil
	}
	w.reportRefusal(ctx, in, in.refusal) // it was a view's: without the views there is none
	there, err := w.look(ctx, in.what, in.written)
	if err == nil && !there {
		w.s.log.Error("ClickHouse accepted a repeated insert, but its rows are missing: they were deleted, have expired, or were lost while their token was kept; "+
			"run `streamer verify`", "what", in.what, "after", p.intent.After.String(), "through", p.intent.Through.String())
	}
	return err
}

// final reports whether no further attempt can help.
func final(err error) bool {
	class := failure.Of(err)
	return err != nil && (class == failure.Fatal || class == failure.Poison || errors.Is(err, sink.ErrTooMuch))
}

// lookFailed keeps a fatal refusal: what refuses the insert may refuse the look, too.
func (w *writer) lookFailed(ctx context.Context, refusal, err error) error {
	if ctx.Err() == nil && failure.Of(refusal) == failure.Fatal {
		return refusal
	}
	return err
}

// attempt registers the insert, proves and writes the intent, and sends the block.
func (w *writer) attempt(ctx context.Context, p *part, in insertion, n int) error {
	ctx, cancel := context.WithTimeout(ctx, w.s.cfg.InsertTimeout)
	defer cancel()
	failpoint.Hit("before-insert")
	registered, id := time.Now(), in.token
	if in.refusal != nil {
		id += "-without"
	}
	err := in.insert(ctx, sink.InsertRequest{
		QueryID: fmt.Sprintf("%s-%d-%s", id, n, w.s.nonce), Token: in.token, IngestedAt: time.UnixMilli(p.intent.IngestedAt).UTC(),
		Verify:       func(ctx context.Context) error { return w.verify(ctx, p) },
		WithoutViews: in.refusal != nil, ViewFailed: w.viewFailed,
	})
	failpoint.Hit("after-insert")
	if err != nil && !sink.Answered(err) && !errors.Is(err, errOwner) {
		w.attemptsOver = registered.Add(sink.InsertBound(w.s.cfg.InsertTimeout))
		w.window.unanswered(registered)
	}
	return err
}

// look asks until it has an answer: without one there must be no further attempt.
func (w *writer) look(ctx context.Context, what string, written func(context.Context) (bool, error)) (there bool, err error) {
	err = w.s.untilAnswered(ctx, "whether "+what+" are written", func(ctx context.Context) error {
		there, err = written(ctx)
		return err
	})
	return there, err
}

// reportRefusal reports rows that are written although ClickHouse refused them: a view on their table has
// failed, if there is one.
func (w *writer) reportRefusal(ctx context.Context, in insertion, refusal error) {
	if refusal == nil {
		return
	}
	var failed *sink.ViewError
	err := w.s.within(ctx, func(ctx context.Context) (err error) {
		failed, err = w.s.sink.FailedViews(ctx, in.table, refusal)
		return err
	})
	switch {
	case failed != nil:
		w.viewFailed(failed)
	case sink.Code(refusal) != 0:
		w.s.log.Warn("an insert failed although its rows are there, and no materialized view is known to have failed", "what", in.what, "error", errors.Join(refusal, err))
	}
}

// viewFailed reports rows that a view lacks.
func (w *writer) viewFailed(failed *sink.ViewError) {
	w.s.observer.ViewFailed(failed)
	w.s.log.Warn("a materialized view fails: it lacks what it makes of rows that are written", "error", failed)
}

// errOwner ends the session: whether the slot is ours and the publication is the same could not be found out.
var errOwner = errors.New("cannot verify the slot")

// verify proves that the slot is ours and makes p's intent durable.
func (w *writer) verify(ctx context.Context, p *part) error {
	rec, intent := w.s.record, p.intent // a copy: the record is what was written
	rec.Intent = &intent
	if err := w.writeRecord(ctx, rec); err != nil {
		return err
	}
	failpoint.Hit("intent-written")
	return nil
}

// writeRecord proves that the slot is ours and that the publication has not changed, and
// makes rec durable, with what may be confirmed by now, if it is not the record already.
func (w *writer) writeRecord(ctx context.Context, rec replication.IntentRecord) error {
	failpoint.Hit("before-verify")
	rec.Confirm = max(rec.Confirm, w.confirmable())
	if in := rec.Intent; in != nil && in.Unanswered != time.Now().Before(w.window.until) {
		changed := *in
		changed.Unanswered = !in.Unanswered
		rec.Intent = &changed
	}
	if !reflect.DeepEqual(rec, w.s.record) {
		return w.replaceRecord(ctx, rec)
	}
	if err := w.s.control.VerifyOwner(ctx, w.s.owner()); err != nil {
		return unproven(err)
	}
	failpoint.Hit("verified")
	w.confirmRecorded()
	return nil
}

// replaceRecord proves that the slot is ours and makes rec durable.
func (w *writer) replaceRecord(ctx context.Context, rec replication.IntentRecord) error {
	end, err := w.s.control.WriteIntent(ctx, w.s.owner(), rec)
	if err != nil {
		return unproven(err)
	}
	w.s.record, w.idle.recordEnd, w.idle.recordedAt = rec, end, time.Now()
	failpoint.Hit("verified")
	w.confirmRecorded()
	return nil
}

// confirmable is what may be recorded as confirmed.
func (w *writer) confirmable() pglogrepl.LSN {
	if !w.unproved.confirms() {
		return 0
	}
	return w.durable
}

// confirmRecorded confirms what may be confirmed as far as the record says so.
func (w *writer) confirmRecorded() {
	if lsn := uint64(min(w.confirmable(), w.s.record.Confirm)); lsn > w.confirmed.lsn.Load() {
		w.confirmed.raise(lsn)
	}
}

// unproven returns an error that asks an operator to act as it is.
func unproven(err error) error {
	if failure.Of(err) == failure.Fatal {
		return err
	}
	return fmt.Errorf("%w: %w", errOwner, err)
}

func (w *writer) retrying(what string, attempt int, err error) {
	w.retries++
	w.s.retrying(err)
	w.s.log.Warn("insert failed, retrying", "what", what, "attempt", attempt, "error", err)
}

const (
	// idleBytes is the WAL behind our last record that is worth another one: it is much
	// more than a record makes itself.
	idleBytes = 4 << 10
	// idleRecordInterval is the shortest time between two records without rows, and
	// maxIdleRecordInterval the longest as long as less than idleBytes of WAL was written.
	idleRecordInterval    = 500 * time.Millisecond
	maxIdleRecordInterval = 30 * time.Second
)

// idleRecord decides when a position without rows is recorded and confirmed. Recording makes
// WAL, which makes the next position: an idle streamer must not follow its own.
type idleRecord struct {
	recordEnd  pglogrepl.LSN // end of the WAL at the last record
	recordedAt time.Time
	interval   time.Duration // for little WAL; it grows while nothing else is written
}

// due reports whether confirm is to be recorded now.
func (i *idleRecord) due(confirm pglogrepl.LSN, now time.Time) bool {
	if i.interval = max(i.interval, idleRecordInterval); confirm >= i.recordEnd+idleBytes {
		i.interval = idleRecordInterval
	}
	if now.Before(i.recordedAt.Add(i.interval)) {
		return false
	}
	i.interval = min(2*i.interval, maxIdleRecordInterval)
	return true
}

// ownerCheck is how soon a writer that waits for ClickHouse notices that PostgreSQL
// shuts down: ordinary connections are ended first, and then the server waits for
// the stream to confirm what it cannot confirm.
const ownerCheck = 2 * time.Second

// pause waits before the next attempt, and ends with errOwner when the slot is not ours any more.
func (s *session) pause(ctx context.Context, d time.Duration) error {
	for d > 0 {
		step := min(d, ownerCheck)
		if err := sleep(ctx, step); err != nil {
			return err
		}
		err := s.within(ctx, func(ctx context.Context) error { return s.control.VerifyOwner(ctx, s.owner()) })
		if err != nil {
			return unproven(err)
		}
		d -= step
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
