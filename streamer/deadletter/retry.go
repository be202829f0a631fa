package deadletter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/shared/clickhouse"
	"diehard/shared/failure"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// Result of the retry of a record.
type Result string

const (
	// Written is in event_log now.
	Written Result = "written"
	// AlreadyWritten was in event_log already; the record is marked now.
	AlreadyWritten Result = "already written"
	// Refused is still refused by event_log.
	Refused Result = "refused"
	// TooEarly is beyond what the streamer has confirmed; see Retrier.
	TooEarly Result = "too early"
)

// Outcome is a record and the result of its retry.
type Outcome struct {
	Record
	Result    Result
	Cause     string // why it is not in event_log; empty if it is
	CauseCode int32  // of the ClickHouse exception that Cause is the text of; 0 if it was none
}

// Retrier writes records at their own position in event_log, exactly once.
//
// A record whose (source, commit_lsn, commit_seq) is in event_log already is only
// marked. One retry runs at a time: it holds a lock in PostgreSQL, ends what an
// earlier one left running in ClickHouse, and each insert proves, when ClickHouse
// has registered it and has not yet received its rows, that the lock is still held. So what was
// read before an insert still holds when it is written.
//
// A streamer that starts goes on behind the last row of its source in event_log.
// A record must therefore not be written ahead of rows that are not: its position must be
// at or before the last row of event_log, or below what the slot has confirmed.
// Otherwise it is TooEarly, until the streamer has caught up.
// A streamer that starts in the middle of a retry ends the retry's insert, like
// that of any predecessor, before it reads the last position.
type Retrier struct {
	records table
	log     eventLog
	conn    clickhouse.Conn
	tables  sink.Tables
	guard   *replication.AdvisoryLock
	nonce   string
	inserts int
	fenced  map[sink.Source]bool
}

// NewRetrier takes the lock. The caller closes the Retrier. Not safe for concurrent use.
//
// Errors: ErrBusy.
func NewRetrier(ctx context.Context, postgresURL string, conn clickhouse.Conn, tables sink.Tables) (*Retrier, error) {
	g, err := lock(ctx, postgresURL)
	if err != nil {
		return nil, err
	}
	return &Retrier{
		conn:    conn,
		records: table{conn: conn, name: sink.Quote(tables.DeadLetter)},
		log:     eventLog{conn: conn, name: sink.Quote(tables.EventLog)},
		tables:  tables, guard: g, nonce: strings.ToLower(rand.Text()), fenced: make(map[sink.Source]bool),
	}, nil
}

// Close releases the lock.
func (r *Retrier) Close() { r.guard.Close() }

// Retry tries the records that f chooses, except those that are known to be in event_log
// already, and reports each of them. After an error it can be called again.
func (r *Retrier) Retry(ctx context.Context, f Filter, report func(Outcome)) error {
	f.Retried = false
	var last Record
	for {
		page, err := r.records.page(ctx, f, last)
		if err != nil || len(page) == 0 {
			return err
		}
		last = page[len(page)-1]
		for _, group := range byOrigin(page) {
			if err := r.retryGroup(ctx, group, report); err != nil {
				return err
			}
		}
	}
}

// byOrigin cuts records, which are in the order of the table, where source or timeline changes.
func byOrigin(records []Record) [][]Record {
	var groups [][]Record
	for i, d := range records {
		if i == 0 || d.Source != records[i-1].Source || d.Timeline != records[i-1].Timeline {
			groups = append(groups, nil)
		}
		g := &groups[len(groups)-1]
		*g = append(*g, d)
	}
	return groups
}

// retryGroup retries records of one source and timeline.
func (r *Retrier) retryGroup(ctx context.Context, records []Record, report func(Outcome)) error {
	g, err := r.begin(ctx, records)
	if err != nil {
		return err
	}
	present, err := r.log.written(ctx, records, time.UnixMilli(0))
	if err != nil {
		return err
	}
	for _, d := range records {
		if present[d.Position] {
			g.resolve(d, AlreadyWritten)
		} else {
			g.decode(d)
		}
	}
	if n := g.rows.Len(); n > 0 {
		all := sink.Block{Rows: &g.rows, Range: sink.Range{Through: g.rows.Position(n - 1)}}
		if err := g.sink.Write(ctx, all, &groupWriter{r, g}); err != nil {
			return err
		}
	}
	if err := r.records.mark(ctx, g.written, time.Now(), false); err != nil {
		return err
	}
	for _, o := range g.outcomes {
		report(o)
	}
	return nil
}

// group is the records of one source and timeline.
type group struct {
	source sink.Source
	sink   *sink.Sink
	bounds bounds

	rows     decode.Rows
	waiting  map[decode.Position]Record // of rows
	written  []Record
	outcomes []Outcome
}

// begin checks the tables, ends what an earlier retry left running, and reads the bounds.
func (r *Retrier) begin(ctx context.Context, records []Record) (*group, error) {
	system, slot, ok := strings.Cut(records[0].Source, "/")
	if !ok {
		return nil, fmt.Errorf("dead letter %s/%d has the source %q, which names no slot", records[0].LSN, records[0].Seq, records[0].Source)
	}
	g := &group{source: sink.Source{SystemID: system, Slot: slot}, waiting: make(map[decode.Position]Record, len(records))}
	g.sink = sink.New(r.conn, r.tables, g.source, sink.OnTimeline(records[0].Timeline))
	r.log.sink = g.sink
	if err := g.sink.CheckTables(ctx); err != nil {
		return nil, err
	}
	if !r.fenced[g.source] {
		if err := g.sink.Fence(ctx, queryPrefix(g.source), func(uint64) {}); err != nil {
			return nil, err
		}
		r.fenced[g.source] = true
	}
	if strings.Contains(slot, "/") { // a replay from the table chose the position: no streamer goes on behind it
		g.bounds.confirmed = math.MaxUint64
		return g, nil
	}
	var err error
	if g.bounds.written, _, err = g.sink.Position(ctx); err != nil {
		return nil, err
	}
	g.bounds.confirmed, err = confirmed(ctx, r.guard, system, slot)
	return g, err
}

// queryPrefix begins with that of the source: a streamer that starts ends our inserts too.
func queryPrefix(s sink.Source) string { return s.QueryPrefix() + "deadletter-" }

// bounds are up to where every row of a source is in one of the tables.
type bounds struct {
	written   decode.Position
	confirmed pglogrepl.LSN
}

func (b bounds) cover(p decode.Position) bool { return !p.After(b.written) || p.LSN < b.confirmed }

func (g *group) resolve(d Record, result Result) {
	g.written = append(g.written, d)
	g.outcomes = append(g.outcomes, Outcome{Record: d, Result: result})
}

// keep keeps d a dead letter.
func (g *group) keep(d Record, result Result, cause string, code int32) {
	g.outcomes = append(g.outcomes, Outcome{Record: d, Result: result, Cause: cause, CauseCode: code})
}

// decode adds d to the rows to insert, if it is within the bounds and can be decoded now.
func (g *group) decode(d Record) {
	if !g.bounds.cover(d.Position) {
		g.keep(d, TooEarly, g.tooEarly(), 0)
		return
	}
	tuple, err := decode.ParseTuple(d.raw)
	if err == nil {
		err = tuple.Append(&g.rows, d.Position, d.CommitTime.UnixMicro())
	}
	if err != nil {
		g.keep(d, Refused, err.Error(), 0)
		return
	}
	g.waiting[d.Position] = d
}

func (g *group) tooEarly() string {
	if g.bounds.confirmed == 0 {
		return fmt.Sprintf("slot %s of system %s is not on the server that DATABASE_URL names, and event_log has nothing newer from it: "+
			"set DATABASE_URL to its server", g.source.Slot, g.source.SystemID)
	}
	return fmt.Sprintf("the streamer has confirmed %s only, and may still deliver rows before this one: let it run and try again",
		g.bounds.confirmed)
}

// groupWriter writes the rows of a group as sink.Write asks for it.
type groupWriter struct {
	r *Retrier
	g *group
}

// Insert implements sink.Writer.
func (w *groupWriter) Insert(ctx context.Context, b sink.Block) error {
	r, g := w.r, w.g
	r.inserts++
	id := fmt.Sprintf("%s%s-%d", queryPrefix(g.source), r.nonce, r.inserts)
	began := time.Now()
	from, to := b.Bounds()
	refusal := g.sink.Insert(ctx, b.Rows, from, to, sink.InsertRequest{
		QueryID: id, Token: queryPrefix(g.source) + sink.TokenOf(b), IngestedAt: began, Verify: r.guard.Verify,
		WithoutViews: b.Refusal != nil,
	})
	if refusal != nil && sink.Code(refusal) == 0 {
		return retryFailed(refusal)
	}
	// The table decides, whatever the error: a failing materialized view reports one although the
	// rows were written.
	records := make([]Record, 0, to-from)
	for i := from; i < to; i++ {
		records = append(records, g.waiting[b.Rows.Position(i)])
	}
	present, err := r.log.written(ctx, records, began)
	switch {
	case err != nil:
		return err
	case len(present) == len(records):
		for _, d := range records {
			g.resolve(d, Written)
		}
		return nil
	case refusal == nil || len(present) > 0:
		return errIncomplete
	}
	return notWritten(refusal, len(records))
}

// notWritten is the answer for rows that are refused and not written.
func notWritten(refusal error, rows int) error {
	limits := sink.LimitErrors{Limit: 1}
	if limited := limits.Classify(refusal); errors.Is(limited, sink.ErrTooMuch) && rows > 1 {
		return limited
	}
	// A refused record stays a dead letter, so an unknown code may be taken for a refusal at once.
	if failure.Of(refusal) != failure.Poison && sink.Unknown(refusal) == 0 {
		return retryFailed(refusal)
	}
	return failure.Wrap(failure.Poison, refusal)
}

func retryFailed(err error) error {
	return fmt.Errorf("retry dead letters: %w; try again: what was written is recognized", err)
}

// Refuse implements sink.Writer.
func (w *groupWriter) Refuse(_ context.Context, _ sink.Block, refused []decode.Reject) error {
	for _, x := range refused {
		w.g.keep(w.g.waiting[x.Position], Refused, x.Reason, x.Code)
	}
	return nil
}

// Halve implements sink.Writer.
func (w *groupWriter) Halve(context.Context, sink.Block, error) error { return nil }

// Ask implements sink.Writer.
func (w *groupWriter) Ask(ctx context.Context, query func(context.Context) error) error {
	return query(ctx)
}

var errIncomplete = errors.New("retry dead letters: not all rows were written; try again: what was written is recognized")
