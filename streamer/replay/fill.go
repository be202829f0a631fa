package replay

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"

	"diehard/shared/failure"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// gap is the part of a chunk that is missing in the table.
type gap struct {
	rows        []int // indexes into the chunk's rows
	rejects     []int // indexes into its rejects
	present     int   // rows and rejects that are in the table
	deadLetters int   // rows and rejects that are dead letters
}

// filler writes the rows of a gap, each exactly once.
//
// The table is read before every insert, and no other program inserts these rows:
// the lock excludes other replays, and the rows lie before what the streamer
// had confirmed. Each insert proves, when ClickHouse has registered it and has not yet
// received its rows, that the lock is held. A streamer that starts ends
// inserts of a replay like those of any predecessor, because their query ids begin
// with that of its source: if the restarted server sends rows again, ours are not
// written beside them. A replay whose insert was killed tries again, with the same token for
// the same rows: an insert that runs on a node that is not asked is not written beside it.
type filler struct {
	log            eventLog
	sink           *sink.Sink
	source         sink.Source // of the rows that are written
	others         sources     // of rows that are there under another position
	guard          *guard
	prefix         string // of our query ids
	useDeadLetters bool   // refused rows become dead letters; not for another table than event_log
	dryRun         bool
	timeout        time.Duration // of an insert
	logger         *slog.Logger

	report  *Report
	inserts int
	nonce   string
	subset  decode.Rows
}

// fill compares rows with the table by find, and writes what is missing at the
// positions that position returns. While ClickHouse is unavailable it retries.
func (f *filler) fill(ctx context.Context, rows *decode.Rows, find func(context.Context) (gap, error), position func(i int) decode.Position) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstWait, maxWait
	p := &chunkFill{f: f, limits: sink.LimitErrors{Limit: limitTries}, rows: rows, find: find, position: position, ingestedAt: time.Now()}
	for {
		err := p.try(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case final(err):
			return err
		}
		f.logger.Warn("insert failed, retrying", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait.NextBackOff()):
		}
	}
}

// limitTries is how often rows must exceed a limit of ClickHouse before halves of them are tried.
const limitTries = 3

const (
	firstWait = 200 * time.Millisecond
	maxWait   = 15 * time.Second
)

// final reports errors that a retry cannot fix. A refusal is final too where
// no rows were inserted: a query of ours is wrong.
func final(err error) bool {
	return failure.Of(err) != failure.Transient || errors.Is(err, replication.ErrSession)
}

// chunkFill fills one chunk.
type chunkFill struct {
	f        *filler
	rows     *decode.Rows
	find     func(context.Context) (gap, error)
	position func(i int) decode.Position

	tried   bool
	counted bool
	missing int64
	refused int64

	ingestedAt time.Time // of all its rows: their partition follows from it

	unknownCode bool // rows are halved for an unknown code
	anyWritten  bool // rows of the chunk were written
	fronts      int  // retries of a first row with such a code
	unknown     sink.UnknownErrors
	limits      sink.LimitErrors
}

func (p *chunkFill) try(ctx context.Context) error {
	if p.tried { // an insert whose outcome is unknown may still be running
		if err := p.f.sink.Fence(ctx, p.f.prefix, func(uint64) {}); err != nil {
			return err
		}
	}
	p.tried = true
	g, err := p.find(ctx)
	if err != nil {
		return err
	}
	p.count(g)
	if p.f.dryRun || len(g.rows)+len(g.rejects) == 0 {
		p.finish()
		return nil
	}
	if err := p.writeDecodeRejects(ctx, g.rejects); err != nil {
		return err
	}
	p.gather(g.rows)
	if n := p.f.subset.Len(); n > 0 {
		all := sink.Block{Rows: &p.f.subset, Range: sink.Range{Through: p.f.subset.Position(n - 1)}}
		if err := p.f.sink.Write(ctx, all, p); err != nil {
			return err
		}
	}
	p.finish()
	return nil
}

// count notes what the first look showed.
func (p *chunkFill) count(g gap) {
	if p.counted {
		return
	}
	p.counted = true
	p.missing = int64(len(g.rows) + len(g.rejects))
	p.f.report.Read += int64(p.rows.Len() + len(p.rows.Rejects))
	p.f.report.Present += int64(g.present)
	p.f.report.DeadLetters += int64(g.deadLetters)
	p.f.report.Missing += p.missing
}

func (p *chunkFill) finish() {
	if !p.f.dryRun {
		p.f.report.Refused += p.refused
		p.f.report.Filled += p.missing - p.refused
	}
}

// gather copies the missing rows, with their positions, into the subset.
func (p *chunkFill) gather(missing []int) {
	p.f.subset.Reset()
	for _, i := range missing {
		e := eventAt(p.rows, i)
		p.f.subset.Append(p.position(i), p.rows.CommitTime[i], &e)
	}
}

// eventAt views row i. Its slices point into rows.
func eventAt(rows *decode.Rows, i int) decode.Event {
	return decode.Event{
		ID:   rows.IDAt(i),
		Type: []byte(rows.Type.Values[rows.Type.Keys[i]]), DateTime: rows.DateTime[i],
		Environment: []byte(rows.Environment.Values[rows.Environment.Keys[i]]),
		Context:     rows.ContextAt(i), MetadataVersion: rows.MetadataVersion[i],
		TraceID: [16]byte(rows.TraceID[16*i:]), PublishedBy: []byte(rows.PublishedBy.Values[rows.PublishedBy.Keys[i]]),
	}
}

// next is the request of the next insert, under a token of its own.
func (p *chunkFill) next() sink.InsertRequest {
	p.f.inserts++
	id := p.f.name(strconv.Itoa(p.f.inserts))
	return sink.InsertRequest{
		QueryID: id, Token: id, IngestedAt: p.ingestedAt, Verify: p.f.guard.Verify,
		ViewFailed: func(err *sink.ViewError) {
			p.f.logger.Warn("a materialized view fails: it lacks what it makes of rows that are written", "error", err)
		},
	}
}

// name is for an insert of this replay.
func (f *filler) name(suffix string) string { return f.prefix + f.nonce + "-" + suffix }

// within bounds one insert. Comparing has no such bound: it takes as long as the table is large.
func (p *chunkFill) within(ctx context.Context, insert func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.f.timeout)
	defer cancel()
	return insert(ctx)
}

// Insert implements sink.Writer.
func (p *chunkFill) Insert(ctx context.Context, b sink.Block) error {
	from, to := b.Bounds()
	answer := p.within(ctx, func(ctx context.Context) error {
		request := p.next()
		request.Token = p.f.name(sink.TokenOf(b)) // the same for the same rows
		request.WithoutViews = b.Refusal != nil
		return p.f.sink.Insert(ctx, b.Rows, from, to, request)
	})
	if sink.Code(answer) != 0 { // a view may have failed after the rows were written
		written, err := p.isWritten(ctx, b.Rows.Position(to-1))
		if err != nil {
			return err
		}
		if written {
			p.f.logger.Warn("a materialized view failed: the rows are written, but ClickHouse reported an error", "error", answer)
			answer = nil
		}
	}
	if answer = p.limits.Classify(answer); errors.Is(answer, sink.ErrTooMuch) && to-from > 1 {
		p.limits.Limit = 1 // a server that is waited for was waited for
		return answer
	}
	p.anyWritten = p.anyWritten || answer == nil
	refusal := p.classify(answer)
	switch {
	case failure.Of(refusal) != failure.Poison:
		return refusal
	case to-from == 1 && p.unknownCode && !p.anyWritten && p.wait():
		return answer // nothing is written yet: the server may be the cause
	default:
		return refusal
	}
}

// Refuse implements sink.Writer.
func (p *chunkFill) Refuse(ctx context.Context, _ sink.Block, refused []decode.Reject) error {
	return p.writeDeadLetters(ctx, refused)
}

// Halve implements sink.Writer.
func (p *chunkFill) Halve(_ context.Context, b sink.Block, cause error) error {
	if cause != nil {
		p.f.logger.Warn("writing refused rows in halves, until each row that is refused stands alone", "rows", b.Len(), "error", cause)
	}
	return nil
}

// Ask implements sink.Writer. An error ends this try.
func (p *chunkFill) Ask(ctx context.Context, query func(context.Context) error) error {
	return p.within(ctx, query)
}

// classify takes an unknown code for a refusal after three attempts.
func (p *chunkFill) classify(answer error) error {
	p.unknown.Limit = 3
	if p.unknownCode {
		p.unknown.Limit = 1
	}
	refusal := p.unknown.Classify(answer)
	if failure.Of(refusal) == failure.Poison {
		p.unknownCode = sink.Unknown(refusal) != 0
	}
	return refusal
}

// wait reports whether a first row is retried. Each is retried more often than the one before.
func (p *chunkFill) wait() bool {
	p.fronts++
	return p.fronts < 6+2*int(p.refused)
}

// isWritten reports whether a block is in the table whose last row is at last. It is written as a whole or not at all.
func (p *chunkFill) isWritten(ctx context.Context, last decode.Position) (bool, error) {
	present := false
	err := p.f.log.positions(ctx, p.f.source.String(), chunk{after: previous(last), upTo: last},
		func(decode.Position) { present = true })
	return present, err
}

func previous(p decode.Position) decode.Position {
	p.Seq--
	return p
}

func (p *chunkFill) writeDecodeRejects(ctx context.Context, indexes []int) error {
	if len(indexes) == 0 {
		return nil
	}
	rejects := make([]decode.Reject, len(indexes))
	for n, i := range indexes {
		rejects[n] = p.rows.Rejects[i]
	}
	return p.writeDeadLetters(ctx, rejects)
}

// writeDeadLetters is safe to repeat: the dead-letter table knows a row by its position.
func (p *chunkFill) writeDeadLetters(ctx context.Context, rejects []decode.Reject) error {
	if p.f.useDeadLetters {
		err := p.within(ctx, func(ctx context.Context) error { return p.f.sink.PutDeadLetters(ctx, rejects, p.next()) })
		if err != nil {
			return err
		}
	}
	p.refused += int64(len(rejects))
	p.fronts = 0
	for _, r := range rejects {
		p.f.logger.Error("row refused", "event_id", r.ID, "event_type", r.Type, "commit_lsn", r.LSN.String(), "commit_seq", r.Seq,
			"dead_letter", p.f.useDeadLetters, "reason", sink.RedactedReason(r.Reason, r.Code))
	}
	return nil
}
