package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/failpoint"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// writer writes batches one after the other and moves the confirmed position.
//
// Invariants:
//   - Rows are written in stream order, and at most one range of them may be unfinished:
//     the one that the record in PostgreSQL names.
//   - Before the data of a block is sent, its insert is registered with ClickHouse, and
//     then its intent is durable, written with the proof that the slot is ours.
//   - A block is sent again with the same rows and the same token, after a look whether it
//     is written. A range gets new tokens only when every attempt under the old one is over.
//   - Rows that ClickHouse refuses are named in the intent before their dead letters are sent. The
//     rest of the block goes under its old token: of two blocks, with them and without, one is written.
//   - Dead letters are written before the rows that came with them.
//   - The record says that a position may be confirmed when everything before it is durable,
//     and no position is confirmed before the record says so: so a slot that stands beyond the
//     record was moved by something else.
type writer struct {
	s         *session
	confirmed *confirmed
	ready     <-chan *batch.Batch
	free      chan<- *batch.Batch
	waiting   *atomic.Int32 // see waitsReading

	written     decode.Position     // rows up to here are durable
	repeat      *replication.Intent // the first batch is its range; nil for none
	unproved    *unproved
	redelivered *redelivered
	idle        idleRecord
	window      window
	durable     pglogrepl.LSN // may be recorded, and confirmed then

	blocks         int             // tokens of this session
	retries        int             // of the current batch
	attemptsOver   time.Time       // attempts at the current range that had no answer are over then
	tooMuch        bool            // it exceeded a limit, and was halved
	refused        []decode.Reject // of the current batch, by ClickHouse, in stream order
	anyWritten     bool            // rows of the current batch are written
	unknownCode    bool            // the current batch is halved for a code that no list has
	unknownRejects int             // dead letters for such codes since any row was written
}

func newWriter(s *session, c *confirmed, ready <-chan *batch.Batch, free chan<- *batch.Batch, waiting *atomic.Int32, at *beginning) *writer {
	w := &writer{
		s: s, confirmed: c, ready: ready, free: free, waiting: waiting,
		written: at.after, repeat: at.repeat, unproved: at.unproved, redelivered: at.redelivered, window: newWindow(s, at),
	}
	if w.repeat != nil { // the predecessor may be frozen with it in its hands
		w.attemptsOver = s.claimedAt.Add(sink.InsertBound(s.insertTimeout()))
	}
	return w
}

func (w *writer) run(ctx context.Context) error {
	if err := w.s.ifOurs(ctx, w.checkUnproved(ctx, 0)); err != nil {
		return err
	}
	for b := range w.ready {
		held := measure(b)
		if err := w.write(ctx, b); err != nil {
			return err
		}
		if err := w.s.ifOurs(ctx, w.checkUnproved(ctx, w.durable)); err != nil {
			return err
		}
		w.s.progress.done(held)
		b.Reset(w.s.cfg.Limits)
		w.free <- b
		if w.waiting.Load() == waitsReading {
			w.s.conn.Wake()
		}
	}
	if w.confirmable() <= pglogrepl.LSN(w.confirmed.lsn.Load()) {
		return nil
	}
	return w.confirm(ctx)
}

// write makes b durable and confirms its position, if that is due.
func (w *writer) write(ctx context.Context, b *batch.Batch) error {
	if err := w.s.ifOurs(ctx, w.checkRedelivered(ctx, b)); err != nil {
		return err
	}
	if !b.Empty() {
		if err := w.flush(ctx, b); err != nil {
			return err
		}
	}
	failpoint.Hit("before-confirm")
	w.durable = max(w.durable, b.Confirm)
	w.s.progress.durable.Store(max(w.s.progress.durable.Load(), uint64(w.durable)))
	if !b.Urgent && !w.confirmDue() {
		return nil
	}
	if err := w.confirm(ctx); err != nil {
		return err
	}
	failpoint.Hit("confirmed")
	return nil
}

// confirmDue reports whether to record and confirm what is durable now.
func (w *writer) confirmDue() bool {
	confirmed := pglogrepl.LSN(w.confirmed.lsn.Load())
	switch {
	case w.durable <= confirmed:
		return false
	case !w.unproved.confirms(): // the proof that nothing has changed
		return true
	case w.durable <= w.s.record.Confirm: // that costs no record
		return true
	case w.waiting.Load() != 0: // the next intent records it, too
		return false
	default:
		return w.written.LSN >= confirmed || w.idle.due(w.durable, time.Now())
	}
}

// confirm records that everything durable may be confirmed, and confirms it.
func (w *writer) confirm(ctx context.Context) error {
	return w.s.within(ctx, func(ctx context.Context) error { return w.writeRecord(ctx, w.s.record) })
}

// flush makes the rows of b durable, however long it takes.
func (w *writer) flush(ctx context.Context, b *batch.Batch) error {
	began := time.Now()
	w.retries, w.anyWritten, w.unknownCode, w.refused, w.tooMuch = 0, false, false, nil, false
	w.s.observer.FlushStarted(b)
	err := w.store(ctx, b)
	f := Flush{
		Rows: b.Len(), Bytes: b.Bytes(), DeadLetters: len(b.Rejects),
		First: b.First(), Last: b.Last(), Took: time.Since(began), Retries: w.retries,
	}
	if err == nil {
		w.s.progress.wrote(f)
		w.s.p.size.wrote(w.tooMuch)
		w.idle.interval = 0
		w.s.progress.setState(Streaming)
		w.s.log.Debug("flushed", "rows", f.Rows, "bytes", f.Bytes, "took", f.Took, "last_lsn", f.Last.LSN.String())
	}
	w.s.observer.FlushEnded(b, f, err)
	return err
}

// store writes b under one intent: a new one, or the one that is repeated.
func (w *writer) store(ctx context.Context, b *batch.Batch) error {
	part := &part{b: b, repeated: w.repeat != nil}
	decoded := slices.Clone(b.Rejects)
	if part.repeated {
		part.intent, w.repeat = *w.repeat, nil
		part.intent.InsertTimeout = w.s.insertTimeout().Milliseconds()
		w.refuseAgain(part)
	} else {
		w.attemptsOver = time.Time{}
		var err error
		if part.intent, err = w.newIntent(ctx, w.written, b.Last()); err != nil {
			return err
		}
		part.intent.IngestedAt = time.Now().UnixMilli()
	}
	if err := w.writeRejects(ctx, part, "dead", decoded); err != nil {
		return err
	}
	if err := w.writeRejects(ctx, part, part.refusedToken(), w.refused); err != nil {
		return err
	}
	if err := w.writeRows(ctx, part); err != nil {
		return err
	}
	w.written = b.Last()
	return nil
}

// writeRejects writes rejects of p's range into the dead-letter table, but for what is there
// already: a predecessor that wrote the rows of a larger range in halves has written the
// dead letters of all of it first. A block is written whole, so that what is not there is the same
// for every streamer that writes p.
func (w *writer) writeRejects(ctx context.Context, p *part, token string, rejects []decode.Reject) error {
	if len(rejects) == 0 {
		return nil
	}
	var there map[decode.Position]bool
	err := w.s.untilAnswered(ctx, "dead letters", func(ctx context.Context) (err error) {
		there, err = w.s.sink.DeadLettersIn(ctx, p.rangeOf())
		return err
	})
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(slices.Clone(rejects), func(r decode.Reject) bool { return there[r.Position] })
	if len(missing) == 0 {
		return nil
	}
	return w.writeDeadLetters(ctx, p, token, missing)
}

// part are the rows of a batch that are written under one intent.
type part struct {
	b        *batch.Batch
	intent   replication.Intent
	repeated bool // it may be written: look first
}

func (p *part) rangeOf() sink.Range {
	return sink.Range{After: decode.Position(p.intent.After), Through: decode.Position(p.intent.Through)}
}

// newIntent has a token that no other has, and waits until the window has room for it. Epochs
// begin anew when a record is deleted, and repeat after a failover; the session's name does
// not. IngestedAt is the caller's.
func (w *writer) newIntent(ctx context.Context, after, through decode.Position) (replication.Intent, error) {
	if err := w.awaitWindow(ctx); err != nil {
		return replication.Intent{}, err
	}
	w.blocks++
	return replication.Intent{
		Version: replication.IntentVersion, After: replication.Position(after), Through: replication.Position(through),
		Token:         fmt.Sprintf("%s%d-%d-%s-%d", w.s.source.QueryPrefix(), w.s.record.Timeline, w.s.record.Epoch, w.s.nonce, w.blocks),
		InsertTimeout: w.s.insertTimeout().Milliseconds(), Blocks: w.window.add(time.Now()),
		Tables: []replication.IntentTable{{Name: w.s.cfg.Tables.EventLog}}, LocalOnly: w.s.cfg.Origin.LocalOnly,
	}, nil
}

// untilAttemptsAreOver waits until no attempt under p's token can be written any more: one
// without an answer, or one that a predecessor holds, may be written until its time
// limit, or longer while ClickHouse runs it, and the halves have other tokens.
func (w *writer) untilAttemptsAreOver(ctx context.Context, p *part) error {
	if w.attemptsOver.IsZero() {
		return nil
	}
	if wait := time.Until(w.attemptsOver); wait > 0 {
		w.s.log.Info("waiting for the time limit of an insert without an answer before its rows are tried one by one", "wait", wait.Round(time.Second))
		if err := w.s.pause(ctx, wait); err != nil {
			return err
		}
	}
	if err := w.s.waitUntilNoneRuns(ctx, p.intent.Token+"-"); err != nil {
		return err
	}
	w.attemptsOver = time.Time{}
	there, err := w.look(ctx, "rows", w.rowsWritten(p))
	if err == nil && there {
		err = errWrittenLate
	}
	return err
}

// errWrittenLate ends the session: the next one finds the rows.
var errWrittenLate = errors.New("an insert without an answer was written after all; starting again")

// insertRows writes rows [from, to), those of p, as one block.
func (w *writer) insertRows(ctx context.Context, p *part, from, to int, refusal error) error {
	unknown := sink.UnknownErrors{Limit: w.retryBudget(to - from)}
	if refusal != nil {
		unknown.Limit = 1 // it was tried that often
	}
	limits := sink.LimitErrors{Limit: limitTries}
	if to-from == 1 {
		limits.Limit = math.MaxInt // there is no smaller block
	}
	_, err := w.insertUntilDurable(ctx, p, insertion{
		what: "rows", table: w.s.cfg.Tables.EventLog, token: p.intent.Token, refusal: refusal,
		insert: func(ctx context.Context, r sink.InsertRequest) error {
			return limits.Classify(unknown.Classify(w.s.sink.Insert(ctx, &p.b.Rows, from, to, r)))
		},
		written: w.rowsWritten(p),
	})
	if err == nil {
		w.anyWritten, w.unknownRejects = true, 0
	}
	return err
}

// rowsWritten looks for any row of p in event_log; rows of its range that
// were dead letters may have come there by `streamer deadletter retry`.
func (w *writer) rowsWritten(p *part) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		return w.s.sink.HasRows(ctx, p.rangeOf(), positions(p.b.Rejects))
	}
}

// limitTries is how often a block must exceed a limit of ClickHouse before halves of it are tried.
const limitTries = 3

func positions(rejects []decode.Reject) map[decode.Position]bool {
	m := make(map[decode.Position]bool, len(rejects))
	for _, r := range rejects {
		m[r.Position] = true
	}
	return m
}

// retryBudget is how often rows must meet a code that no list has until they are
// blamed. Rows are written in order, so the first of a batch cannot be compared with
// those behind it: it is tried longer, and the longer, the more dead letters were written
// with no row in between. If the server is to blame after all, few rows
// become dead letters, and none is lost.
func (w *writer) retryBudget(rows int) int {
	switch {
	case rows > 1 && w.unknownCode:
		return 1 // halving blames no row
	case rows > 1 || w.anyWritten:
		return 3
	default:
		return 6 + 2*w.unknownRejects
	}
}

// writeDeadLetters writes rejects of p's range into the dead-letter table, under a token derived from p's.
func (w *writer) writeDeadLetters(ctx context.Context, p *part, token string, rejects []decode.Reject) error {
	at := positions(rejects)
	before, err := w.insertUntilDurable(ctx, p, insertion{
		what: "dead letters", table: w.s.cfg.Tables.DeadLetter, token: p.intent.Token + "-" + token,
		insert:  func(ctx context.Context, r sink.InsertRequest) error { return w.s.sink.PutDeadLetters(ctx, rejects, r) },
		written: func(ctx context.Context) (bool, error) { return w.s.sink.HasDeadLetters(ctx, p.rangeOf(), at) },
	})
	if err != nil || before {
		return err
	}
	failpoint.Hit("after-dead-letter")
	for i, r := range rejects {
		w.s.observer.DeadLetter(r)
		if i < maxLoggedDeadLetters {
			w.s.log.Error("row written to the dead-letter table", "event_id", r.ID, "event_type", r.Type,
				"commit_lsn", r.LSN.String(), "commit_seq", r.Seq, "reason", sink.RedactedReason(r.Reason, r.Code))
		}
	}
	if more := len(rejects) - maxLoggedDeadLetters; more > 0 {
		w.s.log.Error("more rows written to the dead-letter table, see `streamer deadletter list`", "rows", more, "of_batch", p.b.Len()+len(p.b.Rejects))
	}
	return nil
}

// maxLoggedDeadLetters is how many rows of one batch have log entries of their own.
const maxLoggedDeadLetters = 10
