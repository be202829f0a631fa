// Package replay reads events a second time, from the WAL or from the outbox
// itself, to fill what is missing in event_log, to reprocess into another table,
// or to verify. The streamer goes on meanwhile.
//
// From the WAL, a row has the same place (source, commit_lsn, commit_seq) as the
// streamer gives it, and is known by that; or by its id, if it was filled from the
// table, or landed when the outbox was divided into shards differently. Only commits
// that the streamer had confirmed when the replay began are touched: what follows is
// the streamer's business, and a restarted streamer goes on behind the later of its
// last row and what it confirmed, so that rows filled before that move nothing.
//
// The outbox does not tell where its rows were committed. Rows from there are
// known by their id and get a source of their own, which the streamer's position
// does not depend on. They are compared after the streamer has confirmed
// everything that was committed when they were read: what is missing then will
// not come any more.
//
// One case cannot be told apart: the very last rows were deleted from event_log
// and filled from the table, and PostgreSQL crashes before it has noted on disk,
// at its next checkpoint, that they were confirmed. It then sends them again.
package replay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// Config says what to read and where it goes. All fields are required, except Shard and Progress.
type Config struct {
	PostgresURL string
	Slot        string // the streamer's
	Publication string
	Shard       replication.Shard // the streamer's; may be zero
	ClickHouse  driver.Conn
	Tables      sink.Tables
	Limits      batch.Limits
	// InsertTimeout bounds one try at an insert.
	InsertTimeout time.Duration
	Log           *slog.Logger
	// Progress is called often with how much of total is done; total is 0 when unknown.
	Progress func(done, total uint64)
}

// Range is a part of the WAL: the transactions whose commit record lies in
// [From, To). Two ranges that share a border neither overlap nor leave a gap.
type Range struct {
	Bookmark string        // where to begin; empty if From says it
	From     pglogrepl.LSN // 0 for the bookmark's place
	To       pglogrepl.LSN // 0, or anything beyond, is what the streamer has confirmed
}

// Span is a part of the outbox by created_at, from Since up to but without Until; zero times do not restrict.
type Span struct{ Since, Until time.Time }

// Mode says what to do with missing rows.
type Mode struct {
	DryRun bool   // only count
	Into   string // a table with the schema of event_log that takes them; empty for event_log
}

// Report says what a replay found and did, in rows.
type Report struct {
	From, To pglogrepl.LSN // of a Range
	Read     int64
	There    int64 // were in the table already
	SetAside int64 // are dead letters that wait for `deadletter retry`, or were dropped
	Missing  int64
	Filled   int64
	Refused  int64 // could not be filled; of event_log they are dead letters now
	Messages bool  // the streamer reads messages, too, of which the outbox knows nothing
	Took     time.Duration
}

// session is what a replay or a verification holds.
type session struct {
	Config
	guard     *guard
	source    sink.Source
	confirmed pglogrepl.LSN // by the streamer, when it began
	messages  pglogrepl.LSN // from where on messages are events; 0 for never
}

// open checks what must hold. The caller closes the guard.
func (c Config) open(ctx context.Context) (*session, error) {
	if c.Progress == nil {
		c.Progress = func(uint64, uint64) {}
	}
	control, err := replication.OpenControl(ctx, c.PostgresURL, "diehard-streamer-replay",
		replication.Origin{Slot: c.Slot, Publication: c.Publication, Shard: c.Shard})
	if err != nil {
		return nil, err
	}
	defer control.Close(ctx)
	if _, err := control.Preflight(ctx, true); err != nil {
		return nil, err
	}
	messages, err := control.MessagesFrom(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.checkLetters(ctx); err != nil {
		return nil, err
	}
	g, err := openGuard(ctx, c.PostgresURL, c.Slot)
	if err != nil {
		return nil, err
	}
	s := &session{Config: c, guard: g, source: sink.Source{SystemID: g.SystemID, Slot: c.Slot}, messages: messages}
	if s.confirmed, err = g.confirmed(ctx); err != nil {
		g.Close()
		return nil, err
	}
	return s, nil
}

// checkLetters refuses a dead-letter table that is older than this program: asking it
// what was dropped would fail for ever.
func (c Config) checkLetters(ctx context.Context) error {
	err := c.ClickHouse.Exec(ctx, `SELECT `+notLanded+` FROM `+quote(c.Tables.DeadLetter)+` LIMIT 0`)
	switch {
	case sink.Code(err) == codeUnknownIdentifier:
		return fmt.Errorf("table %s lacks a column: run `streamer migrate up`", c.Tables.DeadLetter)
	case err != nil:
		return fmt.Errorf("look at %s: %w", c.Tables.DeadLetter, sink.Classify(err))
	}
	return nil
}

// filler takes the lock and ends what an earlier replay left running.
func (s *session) filler(ctx context.Context, source sink.Source, m Mode, report *Report) (*filler, error) {
	tables := s.Tables
	switch m.Into {
	case "":
	case tables.EventLog:
		return nil, fmt.Errorf("--into %s is the event log itself: without --into what is missing there is filled", m.Into)
	case tables.DeadLetter:
		return nil, fmt.Errorf("--into %s is the dead-letter table: name another", m.Into)
	default:
		tables.EventLog = m.Into
	}
	if err := s.guard.lock(ctx); err != nil {
		return nil, err
	}
	f := &filler{
		log:    eventLog{conn: s.ClickHouse, name: quote(tables.EventLog), deadLetter: quote(tables.DeadLetter)},
		sink:   sink.New(s.ClickHouse, tables, source, s.guard.Timeline),
		source: source, others: s.elsewhere(), guard: s.guard, prefix: s.source.QueryPrefix() + "replay-", nonce: strings.ToLower(rand.Text()),
		letters: m.Into == "", dryRun: m.DryRun, timeout: s.InsertTimeout, logger: s.Log, report: report,
	}
	if err := f.sink.CheckTables(ctx); err != nil {
		if sink.Code(err) == codeUnknownTable && m.Into != "" {
			return nil, fmt.Errorf("table %s does not exist: CREATE TABLE %s AS %s", m.Into, m.Into, s.Tables.EventLog)
		}
		return nil, err
	}
	return f, f.sink.Fence(ctx, f.prefix, func(uint64) {})
}

// Codes of ClickHouse.
const (
	codeUnknownIdentifier = 47
	codeUnknownTable      = 60
)

// FromWAL fills what of r is missing. It may be repeated at any time.
//
// Errors: ErrBusy, ErrNoBookmark; the report holds what was done before an error.
func FromWAL(ctx context.Context, c Config, r Range, m Mode) (Report, error) {
	began := time.Now()
	var report Report
	s, err := c.open(ctx)
	if err != nil {
		return report, err
	}
	defer s.guard.Close()
	w, err := s.wal(ctx, r)
	if err != nil {
		return report, err
	}
	report.From, report.To = w.from, w.to
	f, err := s.filler(ctx, s.source, m, &report)
	if err != nil || w.from == w.to {
		return report, err
	}
	err = w.each(ctx, func(ctx context.Context, p piece) error {
		return f.fill(ctx, p.rows, func(ctx context.Context) (gap, error) { return f.compare(ctx, p) }, p.rows.Position)
	})
	report.Took = time.Since(began)
	return report, err
}

// wal finds the bookmark that can serve r.
func (s *session) wal(ctx context.Context, r Range) (*wal, error) {
	marks := &Bookmarks{conn: s.guard.Conn, slot: s.Slot}
	mark, err := marks.serve(ctx, r)
	if err != nil {
		return nil, err
	}
	from, to := max(r.From, mark.LSN), s.confirmed
	switch {
	case r.To != 0 && r.To < from:
		return nil, fmt.Errorf("--to-lsn %s lies before the start, %s", r.To, from)
	case from > to:
		return nil, fmt.Errorf("the streamer has confirmed %s only: what is committed from %s on is on its way, not missing", to, from)
	case r.To != 0:
		to = min(to, r.To)
	}
	w := &wal{url: s.PostgresURL, publication: s.Publication, slot: mark.slot, from: from, to: to, limits: s.Limits, messages: s.messages}
	w.progress = func(done uint64) { s.Progress(done, uint64(to-from)) }
	return w, nil
}

// serve returns the bookmark to begin r from, the latest that lies before it.
func (b *Bookmarks) serve(ctx context.Context, r Range) (Bookmark, error) {
	list, err := b.List(ctx)
	if err != nil {
		return Bookmark{}, err
	}
	var best *Bookmark
	for i, m := range list {
		if m.Lost && m.Name != r.Bookmark || r.Bookmark != "" && m.Name != r.Bookmark || r.From != 0 && m.LSN > r.From {
			continue
		}
		best = &list[i]
	}
	const table = "`streamer replay --from-table` fills from the outbox itself what no bookmark reaches"
	switch {
	case best == nil && r.Bookmark != "":
		return Bookmark{}, fmt.Errorf("%w: %s; %s. %s", ErrNoBookmark, r.Bookmark, describe(list), table)
	case best == nil:
		return Bookmark{}, fmt.Errorf("PostgreSQL cannot send WAL from %s again: no bookmark lies at or before it; %s. %s", r.From, describe(list), table)
	case best.Lost:
		return Bookmark{}, fmt.Errorf("bookmark %s is lost: PostgreSQL has removed WAL it needed (max_slot_wal_keep_size); %s. %s", best.Name, describe(list), table)
	}
	return *best, nil
}

// clockSlack is how far the clocks of PostgreSQL and the streamer may differ:
// a row is looked for in parts that were written at most so long before its commit.
const clockSlack = 7 * 24 * time.Hour

// compare tells what of p is missing in the table, by place. Dead letters are
// read before the table: a letter that is retried meanwhile is seen in at least one.
func (f *filler) compare(ctx context.Context, p piece) (gap, error) {
	aside := make(map[decode.Position]bool)
	if f.letters {
		err := f.log.setAside(ctx, f.source.String(), p, func(at decode.Position) { aside[at] = true })
		if err != nil {
			return gap{}, err
		}
	}
	var g gap
	absent, lost, err := f.absent(ctx, p)
	if err != nil {
		return g, err
	}
	g.there = p.rows.Len() + len(p.rows.Rejects) - len(absent) - len(lost)
	for _, i := range absent {
		if aside[p.rows.Position(i)] {
			g.setAside++
		} else {
			g.rows = append(g.rows, i)
		}
	}
	for _, i := range lost {
		if aside[p.rows.Rejects[i].Position] {
			g.setAside++
		} else {
			g.rejects = append(g.rejects, i)
		}
	}
	return g, f.withoutOthers(ctx, p.rows, &g)
}

// absent returns the rows and rejects of p whose places are not taken.
func (f *filler) absent(ctx context.Context, p piece) (rows, rejects []int, err error) {
	if p.rows.Empty() {
		return nil, nil, nil
	}
	i, n := 0, p.rows.Len()
	bad := make(map[decode.Position]bool)
	err = f.log.positions(ctx, f.source.String(), p, earliest(p.rows).Add(-clockSlack), func(at decode.Position) {
		for ; i < n && at.After(p.rows.Position(i)); i++ {
			rows = append(rows, i)
		}
		if i < n && p.rows.Position(i) == at {
			i++
		} else if len(p.rows.Rejects) > 0 {
			bad[at] = true
		}
	})
	for ; i < n; i++ {
		rows = append(rows, i)
	}
	for k, r := range p.rows.Rejects {
		if !bad[r.Position] {
			rejects = append(rejects, k)
		}
	}
	return rows, rejects, err
}

func earliest(rows *decode.Rows) time.Time {
	var at []int64
	at = append(at, rows.CommitTime...)
	for _, r := range rows.Rejects {
		at = append(at, r.CommitTime)
	}
	low := at[0]
	for _, t := range at {
		low = min(low, t)
	}
	return time.UnixMicro(low)
}

// withoutOthers takes out of g what is there, or set aside, without its place.
func (f *filler) withoutOthers(ctx context.Context, rows *decode.Rows, g *gap) error {
	if len(g.rows)+len(g.rejects) == 0 {
		return nil
	}
	f.subset.Reset()
	for _, i := range g.rows {
		e := eventAt(rows, i)
		e.Context = nil
		f.subset.Append(rows.Position(i), 0, &e)
	}
	aside, there := make(map[uuid.UUID]bool), make(map[uuid.UUID]bool)
	if f.letters {
		ids := idsOf(&f.subset, 0, f.subset.Len())
		for _, i := range g.rejects {
			ids = append(ids, rows.Rejects[i].ID)
		}
		if err := f.log.lettersByID(ctx, f.others, ids, func(id uuid.UUID) { aside[id] = id != uuid.Nil }); err != nil {
			return err
		}
	}
	if err := f.log.present(ctx, f.others, &f.subset, func(id uuid.UUID) { there[id] = true }); err != nil {
		return err
	}
	g.without(rows, there, aside)
	return nil
}

// without takes those events out of g that are there, or are dead letters.
func (g *gap) without(rows *decode.Rows, there, aside map[uuid.UUID]bool) {
	known := func(id uuid.UUID) bool {
		switch {
		case there[id]:
			g.there++
		case aside[id]:
			g.setAside++
		default:
			return false
		}
		return true
	}
	g.rows = slices.DeleteFunc(g.rows, func(i int) bool { return known(rows.IDAt(i)) })
	g.rejects = slices.DeleteFunc(g.rejects, func(i int) bool { return known(rows.Rejects[i].ID) })
}

// tableSource names the rows that were filled from the outbox of a pipeline.
func tableSource(s sink.Source) sink.Source {
	return sink.Source{SystemID: s.SystemID, Slot: s.Slot + "/table"}
}

var errEmptySpan = errors.New("--until lies before --since")
