package deadletter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// Result says what became of a letter.
type Result string

const (
	// Landed is in event_log now.
	Landed Result = "landed"
	// WasThere was in event_log already; the letter is marked now.
	WasThere Result = "was there"
	// Refused cannot become a row of event_log still.
	Refused Result = "refused"
	// TooEarly lies beyond what the streamer has confirmed; see Retrier.
	TooEarly Result = "too early"
)

// Outcome is a letter and what became of it.
type Outcome struct {
	Letter
	Result    Result
	Cause     string // why it is not in event_log; empty if it is
	CauseCode int32  // of the ClickHouse exception that Cause is the text of; 0 if it was none
}

// Retrier lands letters at their own place in event_log, exactly once.
//
// A letter whose (source, commit_lsn, commit_seq) is in event_log already is only
// marked. One retry runs at a time: it holds a lock in PostgreSQL, ends what an
// earlier one left running in ClickHouse, and each insert proves, when ClickHouse
// knows it and has not yet got its rows, that the lock is still held. So what was
// read before an insert still holds when it lands.
//
// A streamer that starts goes on behind the last row of its source in event_log.
// A letter must therefore not land ahead of rows that have not: it has to lie at
// or before the last row that landed, or below what the slot has confirmed.
// Otherwise it is TooEarly, which passes as soon as the streamer has caught up.
// A streamer that starts in the middle of a retry ends the retry's insert, like
// that of any predecessor, before it reads where the table ends.
type Retrier struct {
	letters table
	log     eventLog
	tables  sink.Tables
	guard   *replication.Guard
	nonce   string
	inserts int
	fenced  map[sink.Source]bool
}

// NewRetrier takes the lock. The caller closes the Retrier. Not safe for concurrent use.
//
// Errors: ErrBusy.
func NewRetrier(ctx context.Context, postgresURL string, conn driver.Conn, tables sink.Tables) (*Retrier, error) {
	g, err := lock(ctx, postgresURL)
	if err != nil {
		return nil, err
	}
	return &Retrier{
		letters: table{conn: conn, name: quote(tables.DeadLetter)},
		log:     eventLog{conn: conn, name: quote(tables.EventLog)},
		tables:  tables, guard: g, nonce: strings.ToLower(rand.Text()), fenced: make(map[sink.Source]bool),
	}, nil
}

// Close lets go of the lock.
func (r *Retrier) Close() { r.guard.Close() }

// Retry tries the letters that f chooses, except those that are known to be in event_log
// already, and reports each of them. After an error it can be called again.
func (r *Retrier) Retry(ctx context.Context, f Filter, report func(Outcome)) error {
	f.Retried = false
	var last Letter
	for {
		page, err := r.letters.page(ctx, f, last)
		if err != nil || len(page) == 0 {
			return err
		}
		last = page[len(page)-1]
		for _, group := range byOrigin(page) {
			if err := r.group(ctx, group, report); err != nil {
				return err
			}
		}
	}
}

// byOrigin cuts letters, which are in the order of the table, where source or timeline changes.
func byOrigin(letters []Letter) [][]Letter {
	var groups [][]Letter
	for i, l := range letters {
		if i == 0 || l.Source != letters[i-1].Source || l.Timeline != letters[i-1].Timeline {
			groups = append(groups, nil)
		}
		g := &groups[len(groups)-1]
		*g = append(*g, l)
	}
	return groups
}

// group retries letters of one source and timeline.
func (r *Retrier) group(ctx context.Context, letters []Letter, report func(Outcome)) error {
	b, err := r.begin(ctx, letters)
	if err != nil {
		return err
	}
	there, err := r.log.landed(ctx, letters, time.UnixMilli(0))
	if err != nil {
		return err
	}
	for _, l := range letters {
		if there[l.Position] {
			b.settle(l, WasThere)
		} else {
			b.decode(l)
		}
	}
	if b.rows.Len() > 0 {
		if err := r.land(ctx, b, 0, b.rows.Len()); err != nil {
			return err
		}
	}
	if err := r.letters.mark(ctx, b.landed, time.Now(), false); err != nil {
		return err
	}
	for _, o := range b.outcomes {
		report(o)
	}
	return nil
}

// attempt is a group on its way into event_log.
type attempt struct {
	source sink.Source
	sink   *sink.Sink
	bounds bounds

	rows     decode.Rows
	waiting  []Letter // one for each of rows
	landed   []Letter
	outcomes []Outcome
}

// begin ends what an earlier retry left running and reads how far it is safe to go.
func (r *Retrier) begin(ctx context.Context, letters []Letter) (*attempt, error) {
	system, slot, ok := strings.Cut(letters[0].Source, "/")
	if !ok {
		return nil, fmt.Errorf("dead letter %s/%d has the source %q, which is none of ours", letters[0].LSN, letters[0].Seq, letters[0].Source)
	}
	b := &attempt{source: sink.Source{SystemID: system, Slot: slot}}
	b.sink = sink.New(r.letters.conn, r.tables, b.source, letters[0].Timeline)
	if !r.fenced[b.source] {
		if err := b.sink.Fence(ctx, queryPrefix(b.source), func(uint64) {}); err != nil {
			return nil, err
		}
		r.fenced[b.source] = true
	}
	if strings.Contains(slot, "/") { // placed by a replay from the table: no streamer goes on behind it
		b.bounds.confirmed = math.MaxUint64
		return b, nil
	}
	var err error
	if b.bounds.landed, _, err = b.sink.Position(ctx); err != nil {
		return nil, err
	}
	b.bounds.confirmed, err = confirmed(ctx, r.guard, system, slot)
	return b, err
}

// queryPrefix begins with that of the source: a streamer that starts ends our inserts too.
func queryPrefix(s sink.Source) string { return s.QueryPrefix() + "deadletter-" }

// bounds say up to where everything of a source is in one of the tables.
type bounds struct {
	landed    decode.Position
	confirmed pglogrepl.LSN
}

func (b bounds) cover(p decode.Position) bool { return !p.After(b.landed) || p.LSN < b.confirmed }

func (b *attempt) settle(l Letter, result Result) {
	b.landed = append(b.landed, l)
	b.outcomes = append(b.outcomes, Outcome{Letter: l, Result: result})
}

// leave leaves l a letter.
func (b *attempt) leave(l Letter, result Result, cause string, code int32) {
	b.outcomes = append(b.outcomes, Outcome{Letter: l, Result: result, Cause: cause, CauseCode: code})
}

// decode adds l to the rows to land, if it may land and can be decoded now.
func (b *attempt) decode(l Letter) {
	if !b.bounds.cover(l.Position) {
		b.leave(l, TooEarly, b.tooEarly(), 0)
		return
	}
	tuple, err := decode.ParseTuple(l.raw)
	if err == nil {
		err = tuple.Append(&b.rows, l.Position, l.CommitTime.UnixMicro())
	}
	if err != nil {
		b.leave(l, Refused, err.Error(), 0)
		return
	}
	b.waiting = append(b.waiting, l)
}

func (b *attempt) tooEarly() string {
	if b.bounds.confirmed == 0 {
		return fmt.Sprintf("slot %s of system %s is not on the server that DATABASE_URL names, and nothing newer from it has landed: "+
			"set DATABASE_URL to its server", b.source.Slot, b.source.SystemID)
	}
	return fmt.Sprintf("the streamer has confirmed %s only, and rows before this one may still be on their way: let it run and try again",
		b.bounds.confirmed)
}

// land inserts rows [from, to) as one block. When ClickHouse refuses the data,
// the halves are tried, until the rows that it refuses stand alone.
func (r *Retrier) land(ctx context.Context, b *attempt, from, to int) error {
	r.inserts++
	id := fmt.Sprintf("%s%s-%d", queryPrefix(b.source), r.nonce, r.inserts)
	began := time.Now()
	refusal := b.sink.Insert(ctx, &b.rows, from, to, sink.Attempt{QueryID: id, Token: id, IngestedAt: began, Verify: r.guard.Verify})
	// A letter that is refused stays a letter: a code that no list has may be taken for a refusal at once.
	if refusal != nil && failure.Of(refusal) != failure.Poison && sink.Unknown(refusal) == 0 {
		return fmt.Errorf("retry dead letters: %w; try again, what has landed is recognised", refusal)
	}
	// Success is believed when it is seen. And a failing materialized view
	// reports an error although the rows have landed.
	letters := b.waiting[from:to]
	there, err := r.log.landed(ctx, letters, began)
	switch {
	case err != nil:
		return err
	case len(there) == len(letters):
		for _, l := range letters {
			b.settle(l, Landed)
		}
		return nil
	case refusal == nil || len(there) > 0:
		return errIncomplete
	case len(letters) == 1:
		b.leave(letters[0], Refused, sink.Reason(refusal), sink.Code(refusal))
		return nil
	}
	middle := from + (to-from)/2
	if err := r.land(ctx, b, from, middle); err != nil {
		return err
	}
	return r.land(ctx, b, middle, to)
}

var errIncomplete = errors.New("retry dead letters: the rows are not all there; try again, what has landed is recognised")
