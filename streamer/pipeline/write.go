package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/failpoint"
	"diehard/streamer/sink"
)

// writer lands batches one after the other and moves the confirmed position.
//
// Order matters. Rows reach event_log strictly in stream order, so its last
// position is a clean cut: everything up to it has landed. Rows that cannot be
// decoded go to the dead-letter table before the batch they came with.
type writer struct {
	*session
	confirmed *confirmed
	ready     <-chan *batch.Batch
	free      chan<- *batch.Batch
	waiting   *atomic.Bool             // the receiver has a batch for us
	dead      map[decode.Position]bool // dead letters that landed before this session, behind the resume position

	inserts int
	retries int  // of the current batch
	took    bool // rows of the current batch have landed
	suspect bool // the current batch is halved for a code that no list has
	doubted int  // rows set aside for such codes since anything landed
}

func (w *writer) run(ctx context.Context) error {
	for b := range w.ready {
		if err := w.land(ctx, b); err != nil {
			return err
		}
		failpoint.Hit("before-confirm")
		w.confirmed.raise(uint64(b.Confirm))
		failpoint.Hit("confirmed")
		w.progress.done(measure(b))
		b.Reset(w.cfg.Limits)
		w.free <- b
		if w.waiting.Load() {
			w.conn.Wake()
		}
	}
	return nil
}

// land makes b durable. A position without rows is proved instead: it may be
// confirmed if the publication has not changed, so that rows before it would have been sent.
func (w *writer) land(ctx context.Context, b *batch.Batch) error {
	if !b.Empty() {
		return w.flush(ctx, b)
	}
	return w.within(ctx, w.verify)
}

// flush makes b durable, however long it takes.
func (w *writer) flush(ctx context.Context, b *batch.Batch) error {
	began := time.Now()
	w.retries, w.took, w.suspect = 0, false, false
	w.observer.FlushStarted(b)
	err := w.store(ctx, b)
	f := Flush{
		Rows: b.Len(), Bytes: b.Bytes(), DeadLetters: len(b.Rejects),
		First: b.First(), Last: b.Last(), Took: time.Since(began), Retries: w.retries,
	}
	if err == nil {
		w.progress.landed(f)
		w.progress.setState(Streaming)
		w.log.Debug("flushed", "rows", f.Rows, "bytes", f.Bytes, "took", f.Took, "last_lsn", f.Last.LSN.String())
	}
	w.observer.FlushEnded(b, f, err)
	return err
}

func (w *writer) store(ctx context.Context, b *batch.Batch) error {
	if len(b.Rejects) > 0 {
		if err := w.setAside(ctx, b.Rejects); err != nil {
			return err
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return w.rows(ctx, b, 0, b.Len())
}

// rows lands [from, to). When ClickHouse refuses the data, the halves are tried
// in order, until the rows that it refuses stand alone.
func (w *writer) rows(ctx context.Context, b *batch.Batch, from, to int) error {
	err := w.insert(ctx, b, from, to)
	if failure.Of(err) != failure.Poison {
		return err
	}
	w.suspect = sink.Unknown(err) != 0
	if to-from == 1 {
		if w.suspect {
			w.doubted++
		}
		return w.setAside(ctx, []decode.Reject{poison(b, from, err)})
	}
	failpoint.Hit("bisecting")
	middle := from + (to-from)/2
	if err := w.rows(ctx, b, from, middle); err != nil {
		return err
	}
	return w.rows(ctx, b, middle, to)
}

// poison describes row i, which ClickHouse refused, as a dead letter.
func poison(b *batch.Batch, i int, err error) decode.Reject {
	return decode.Reject{
		Position: b.Position(i), CommitTime: b.CommitTime[i],
		ID: b.IDAt(i), Type: b.Type.Values[b.Type.Keys[i]],
		Raw: b.TupleAt(i).Encode(), Reason: sink.Reason(err), Code: sink.Code(err),
	}
}

// insert lands [from, to) as one part.
func (w *writer) insert(ctx context.Context, b *batch.Batch, from, to int) error {
	last := b.Position(to - 1)
	doubt := sink.Doubt{Limit: w.patience(to - from)}
	err := w.persist(ctx, "rows", func(ctx context.Context, a sink.Attempt) error {
		return doubt.Judge(w.sink.Insert(ctx, &b.Rows, from, to, a))
	}, func(ctx context.Context) (bool, error) {
		at, _, err := w.sink.Position(ctx)
		return !last.After(at), err
	})
	if err == nil {
		w.took, w.doubted = true, 0
	}
	return err
}

// patience is how often rows must meet a code that no list has until they are
// blamed. Rows land in order, so the first of a batch cannot be compared with
// those behind it: it is tried longer, and the longer, the more rows were set aside
// with nothing landing in between. If the server is to blame after all, few rows
// become dead letters, and none is lost.
func (w *writer) patience(rows int) int {
	switch {
	case rows > 1 && w.suspect:
		return 1 // halving blames no one
	case rows > 1 || w.took:
		return 3
	default:
		return 6 + 2*w.doubted
	}
}

// setAside lands rejects in the dead-letter table, without those that a session before has landed.
func (w *writer) setAside(ctx context.Context, rejects []decode.Reject) error {
	var fresh []decode.Reject
	for _, r := range rejects {
		if !w.dead[r.Position] {
			fresh = append(fresh, r)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	before := fresh[0].Position
	before.Seq--
	err := w.persist(ctx, "dead letters", func(ctx context.Context, a sink.Attempt) error {
		return w.sink.PutDeadLetters(ctx, fresh, a)
	}, func(ctx context.Context) (bool, error) {
		there, err := w.sink.DeadLettersAfter(ctx, before)
		return there[fresh[len(fresh)-1].Position], err
	})
	if err != nil {
		return err
	}
	failpoint.Hit("after-dead-letter")
	for _, r := range fresh {
		w.observer.DeadLetter(r)
		w.log.Error("row set aside in the dead-letter table", "event_id", r.ID, "event_type", r.Type,
			"commit_lsn", r.LSN.String(), "commit_seq", r.Seq, "reason", sink.Loggable(r.Reason, r.Code))
	}
	return nil
}

// persist tries an insert until it has landed, or until it is refused for good.
// landed reads back whether it is there, which decides whenever the outcome is in doubt.
func (w *writer) persist(ctx context.Context, what string, insert func(context.Context, sink.Attempt) error, landed func(context.Context) (bool, error)) error {
	w.inserts++
	id := fmt.Sprintf("%s%s-%d", w.source.QueryPrefix(), w.nonce, w.inserts)
	a := sink.Attempt{Token: id, IngestedAt: time.Now(), Verify: w.verify}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstWait, maxWait
	for try := 1; ; try++ {
		a.QueryID = fmt.Sprintf("%s-%d", id, try)
		failpoint.Hit("before-insert")
		err := w.try(ctx, insert, a)
		failpoint.Hit("after-insert")
		switch {
		case err == nil && try == 1:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && final(err):
			return err
		case err != nil && failure.Of(err) != failure.Poison: // a refusal is an answer: nothing to wait for
			w.retrying(what, try, err)
			if err := w.pause(ctx, wait.NextBackOff()); err != nil {
				return err
			}
		}
		there, settleErr := w.settle(ctx, id, wait, landed)
		switch {
		case settleErr != nil:
			return settleErr
		case there:
			w.landedAnyway(err)
			return nil
		case failure.Of(err) == failure.Poison:
			return err
		case err == nil:
			// Reported as done and not there: the server has kept the token and lost the rows.
			a.Token = a.QueryID
		}
	}
}

// landedAnyway tells of rows that are there although ClickHouse refused them: what it refused is not event_log's.
func (w *writer) landedAnyway(err error) {
	if failure.Of(err) != failure.Poison && sink.Unknown(err) == 0 {
		return
	}
	w.observer.ViewFailed(err)
	w.log.Warn("ClickHouse reported an error although the rows are there: a materialized view on event_log failed, and lacks what it makes of them", "error", err)
}

// final tells errors that no further try and no read-back can help. Poison is
// not among them: a failing materialized view reports an error although the rows have landed.
func final(err error) bool {
	return failure.Of(err) == failure.Fatal || errors.Is(err, errOwner)
}

func (w *writer) try(ctx context.Context, insert func(context.Context, sink.Attempt) error, a sink.Attempt) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.InsertTimeout)
	defer cancel()
	return insert(ctx, a)
}

// settle waits until no try of insert id runs any more, and reads back whether
// one has landed. Without an answer there must be no further try, so it asks until it has one.
func (w *writer) settle(ctx context.Context, id string, wait backoff.BackOff, landed func(context.Context) (bool, error)) (bool, error) {
	for try := 1; ; try++ {
		there, err := w.readBack(ctx, id, landed)
		switch {
		case err == nil:
			return there, nil
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case failure.Of(err) == failure.Fatal:
			return false, err
		}
		w.retrying("the question what has landed", try, err)
		if err := w.pause(ctx, wait.NextBackOff()); err != nil {
			return false, err
		}
	}
}

func (w *writer) readBack(ctx context.Context, id string, landed func(context.Context) (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.InsertTimeout)
	defer cancel()
	if err := w.sink.Fence(ctx, id+"-", func(uint64) {}); err != nil {
		return false, err
	}
	return landed(ctx)
}

// errOwner ends the session: whether the slot is ours could not be found out.
var errOwner = errors.New("cannot verify that the slot is ours")

func (w *writer) verify(ctx context.Context) error {
	failpoint.Hit("before-verify")
	if err := w.control.VerifyOwner(ctx, w.conn.PID(), w.name); err != nil {
		return unproved(err)
	}
	failpoint.Hit("verified")
	return nil
}

// unproved leaves alone what tells an operator what to do: that is about no slot.
func unproved(err error) error {
	if failure.Of(err) == failure.Fatal {
		return err
	}
	return fmt.Errorf("%w: %w", errOwner, err)
}

func (w *writer) retrying(what string, try int, err error) {
	w.retries++
	w.progress.setState(Retrying)
	w.progress.fail(err)
	w.observer.Retry(failure.Of(err), err)
	w.log.Warn("ClickHouse did not take it; trying again, nothing is lost", "what", what, "try", try, "error", err)
}

// ownerCheck is how soon a writer that waits for ClickHouse notices that PostgreSQL
// shuts down: ordinary connections are ended first, and then the server waits for
// the stream to confirm what it cannot confirm.
const ownerCheck = 2 * time.Second

// pause waits before the next try, and ends with errOwner when the slot is not ours any more.
func (w *writer) pause(ctx context.Context, d time.Duration) error {
	for d > 0 {
		step := min(d, ownerCheck)
		if err := sleep(ctx, step); err != nil {
			return err
		}
		if err := w.within(ctx, w.verify); err != nil {
			return err
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
