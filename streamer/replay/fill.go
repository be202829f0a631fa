package replay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"diehard/shared/failure"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// gap is what of a piece is missing in the table.
type gap struct {
	rows     []int // indexes into the piece's rows
	rejects  []int // indexes into its rejects
	there    int   // rows and rejects that are in the table
	setAside int   // rows and rejects that are dead letters
}

// filler lands the rows of a gap, each exactly once.
//
// What is there is read before every insert, and no one else inserts these rows:
// the lock keeps other replays away, and the rows lie before what the streamer
// had confirmed. Each insert proves, when ClickHouse knows it and has not yet got
// its rows, that the session with the lock lives. A streamer that starts ends
// inserts of a replay like those of any predecessor, because their query ids begin
// with that of its source: were the server, restarted, to send rows again, none of
// ours would land beside them. A replay whose insert was ended so tries again.
type filler struct {
	log     eventLog
	sink    *sink.Sink
	source  sink.Source // of the rows that land
	others  sources     // of rows that are there without their place
	guard   *guard
	prefix  string // of our query ids
	letters bool   // refused rows become dead letters; not for another table than event_log
	dryRun  bool
	timeout time.Duration // of an insert
	logger  *slog.Logger

	report  *Report
	inserts int
	nonce   string
	subset  decode.Rows
}

// fill compares rows with the table by find, and lands what is missing at the
// places that place gives. While ClickHouse does not answer it tries again.
func (f *filler) fill(ctx context.Context, rows *decode.Rows, find func(context.Context) (gap, error), place func(i int) decode.Position) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstWait, maxWait
	p := &attempt{filler: f, rows: rows, find: find, place: place}
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
		f.logger.Warn("ClickHouse did not answer; trying again, nothing is lost", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait.NextBackOff()):
		}
	}
}

const (
	firstWait = 200 * time.Millisecond
	maxWait   = 15 * time.Second
)

// final tells errors that another try cannot mend. A refusal is final too where
// no rows were inserted: a query of ours is wrong.
func final(err error) bool {
	return failure.Of(err) != failure.Transient || errors.Is(err, replication.ErrSession)
}

// attempt is one piece on its way.
type attempt struct {
	*filler
	rows  *decode.Rows
	find  func(context.Context) (gap, error)
	place func(i int) decode.Position

	tried   bool
	counted bool
	missing int64
	refused int64

	suspect bool // rows are halved for a code that no list has
	took    bool // rows of the piece have landed
	fronts  int  // times that a first row has met such a code
	doubt   sink.Doubt
}

func (p *attempt) try(ctx context.Context) error {
	if p.tried { // a try whose outcome is unknown may still be running
		if err := p.sink.Fence(ctx, p.prefix, func(uint64) {}); err != nil {
			return err
		}
	}
	p.tried = true
	g, err := p.find(ctx)
	if err != nil {
		return err
	}
	p.count(g)
	if p.dryRun || len(g.rows)+len(g.rejects) == 0 {
		p.finish()
		return nil
	}
	if err := p.putAside(ctx, g.rejects); err != nil {
		return err
	}
	p.gather(g.rows)
	if p.subset.Len() > 0 {
		if err := p.land(ctx, 0, p.subset.Len()); err != nil {
			return err
		}
	}
	p.finish()
	return nil
}

// count notes what the first look showed.
func (p *attempt) count(g gap) {
	if p.counted {
		return
	}
	p.counted = true
	p.missing = int64(len(g.rows) + len(g.rejects))
	p.report.Read += int64(p.rows.Len() + len(p.rows.Rejects))
	p.report.There += int64(g.there)
	p.report.SetAside += int64(g.setAside)
	p.report.Missing += p.missing
}

func (p *attempt) finish() {
	if !p.dryRun {
		p.report.Refused += p.refused
		p.report.Filled += p.missing - p.refused
	}
}

// gather copies the missing rows, with their places, into the subset.
func (p *attempt) gather(missing []int) {
	p.subset.Reset()
	for _, i := range missing {
		e := eventAt(p.rows, i)
		p.subset.Append(p.place(i), p.rows.CommitTime[i], &e)
	}
}

// eventAt views row i. Its slices point into rows.
func eventAt(rows *decode.Rows, i int) decode.Event {
	return decode.Event{
		ID:   rows.IDAt(i),
		Type: []byte(rows.Type.Values[rows.Type.Keys[i]]), DateTime: rows.DateTime[i],
		Environment: []byte(rows.Environment.Values[rows.Environment.Keys[i]]),
		Context:     rows.ContextAt(i), MetadataVersion: rows.MetadataVersion[i],
	}
}

func (p *attempt) next() sink.Attempt {
	p.inserts++
	id := fmt.Sprintf("%s%s-%d", p.prefix, p.nonce, p.inserts)
	return sink.Attempt{QueryID: id, Token: id, IngestedAt: time.Now(), Verify: p.guard.Verify}
}

// within bounds one insert. Comparing has no such bound: it takes as long as the table is large.
func (p *attempt) within(ctx context.Context, insert func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	return insert(ctx)
}

// land inserts rows [from, to) of the subset as one block. When ClickHouse
// refuses the data, the halves are tried, until the rows that it refuses stand alone.
func (p *attempt) land(ctx context.Context, from, to int) error {
	answer := p.within(ctx, func(ctx context.Context) error { return p.sink.Insert(ctx, &p.subset, from, to, p.next()) })
	p.took = p.took || answer == nil
	refusal := p.judge(answer)
	if failure.Of(refusal) != failure.Poison {
		return refusal
	}
	landed, err := p.landed(ctx, from, to)
	switch {
	case err != nil:
		return err
	case landed:
		p.logger.Warn("ClickHouse reported an error although the rows are there: a materialized view failed", "error", refusal)
		return nil
	case to-from > 1:
		middle := from + (to-from)/2
		if err := p.land(ctx, from, middle); err != nil {
			return err
		}
		return p.land(ctx, middle, to)
	case p.suspect && !p.took && p.wait():
		return answer // nothing has landed beside it yet: it may be the server
	default:
		return p.refuse(ctx, from, refusal)
	}
}

// judge takes a code that no list has for a refusal when three tries have met it.
func (p *attempt) judge(answer error) error {
	p.doubt.Limit = 3
	if p.suspect {
		p.doubt.Limit = 1
	}
	refusal := p.doubt.Judge(answer)
	if failure.Of(refusal) == failure.Poison {
		p.suspect = sink.Unknown(refusal) != 0
	}
	return refusal
}

// wait says whether a first row is tried once more. Each costs more tries than the one before.
func (p *attempt) wait() bool {
	p.fronts++
	return p.fronts < 6+2*int(p.refused)
}

// landed tells whether rows [from, to) of the subset are in the table. A block lands as a whole or not at all.
func (p *attempt) landed(ctx context.Context, _, to int) (bool, error) {
	last := p.subset.Position(to - 1)
	there := false
	err := p.log.positions(ctx, p.source.String(), piece{after: previous(last), upTo: last}, time.UnixMilli(0),
		func(decode.Position) { there = true })
	return there, err
}

func previous(p decode.Position) decode.Position {
	p.Seq--
	return p
}

// refuse sets row i of the subset aside.
func (p *attempt) refuse(ctx context.Context, i int, cause error) error {
	s := &p.subset
	return p.setAside(ctx, []decode.Reject{{
		Position: s.Position(i), CommitTime: s.CommitTime[i], ID: s.IDAt(i), Type: s.Type.Values[s.Type.Keys[i]],
		Raw: s.TupleAt(i).Encode(), Reason: sink.Reason(cause), Code: sink.Code(cause),
	}})
}

func (p *attempt) putAside(ctx context.Context, indexes []int) error {
	if len(indexes) == 0 {
		return nil
	}
	rejects := make([]decode.Reject, len(indexes))
	for n, i := range indexes {
		rejects[n] = p.rows.Rejects[i]
	}
	return p.setAside(ctx, rejects)
}

// setAside is safe to repeat: the dead-letter table knows a row by its place.
func (p *attempt) setAside(ctx context.Context, rejects []decode.Reject) error {
	if p.letters {
		err := p.within(ctx, func(ctx context.Context) error { return p.sink.PutDeadLetters(ctx, rejects, p.next()) })
		if err != nil {
			return err
		}
	}
	p.refused += int64(len(rejects))
	p.fronts = 0
	for _, r := range rejects {
		p.logger.Error("row refused", "event_id", r.ID, "event_type", r.Type, "commit_lsn", r.LSN.String(), "commit_seq", r.Seq,
			"dead_letter", p.letters, "reason", sink.Loggable(r.Reason, r.Code))
	}
	return nil
}
