// Package replay reads events a second time, from the WAL or from the outbox
// itself, to fill what is missing in event_log, to reprocess into another table,
// or to verify. The streamer may run meanwhile.
//
// From the WAL, a row has the same position (source, commit_lsn, commit_seq) as the
// streamer gives it, and is identified by that; or by its id, if it was filled from the
// table, or written with another number of shards. Only commits
// that the streamer had confirmed when the replay began are touched: the streamer
// delivers what follows, and a restarted streamer goes on behind the later of its
// last row and what it confirmed, which rows filled before that do not change.
//
// The outbox does not tell where its rows were committed. Rows from there are
// known by their id and get a source of their own, which the streamer's position
// does not depend on. They are compared after the streamer has confirmed
// everything that was committed when they were read: what is missing then
// will not be delivered any more.
//
// One case cannot be detected: the last rows were deleted from event_log
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

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/shared/clickhouse"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// Config says what to read and where to write it. All fields are required, except Reader and Progress.
type Config struct {
	PostgresURL string
	Origin      replication.Origin // the streamer's
	ClickHouse  clickhouse.Conn
	// Reader is as in sink.Sink.ReadThrough; nil is ClickHouse.
	Reader driver.Conn
	Tables sink.Tables
	Limits batch.Limits
	// InsertTimeout bounds one insert attempt.
	InsertTimeout time.Duration
	Log           *slog.Logger
	// Progress is called often with how much of total is done; total is 0 when unknown.
	Progress func(done, total uint64)
}

// Range is a part of the WAL: the transactions whose commit record lies in
// [From, To). Two ranges that share a border neither overlap nor leave a gap.
type Range struct {
	Bookmark string        // where to begin; empty if From says it
	From     pglogrepl.LSN // 0 for the bookmark's position
	To       pglogrepl.LSN // 0, or anything beyond, is what the streamer has confirmed
}

// Span is a part of the outbox by published_at, from Since up to but without Until; zero times do not restrict.
type Span struct{ Since, Until time.Time }

// Mode is what to do with missing rows.
type Mode struct {
	DryRun bool   // only count
	Into   string // a table with the schema of event_log to write them to; empty for event_log
}

// Report says what a replay found and did, in rows.
type Report struct {
	From, To    pglogrepl.LSN // of a Range
	Read        int64
	Present     int64 // were in the table already
	DeadLetters int64 // are dead letters that wait for `deadletter retry`, or were dropped
	Missing     int64
	Filled      int64
	Refused     int64 // could not be filled; of event_log they are dead letters now
	Messages    bool  // the streamer also delivers messages, which are not in the outbox
	Took        time.Duration
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
	control, err := replication.OpenControl(ctx, c.PostgresURL, "diehard-streamer-replay", c.Origin)
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
	if err := c.checkDeadLetterTable(ctx); err != nil {
		return nil, err
	}
	g, err := openGuard(ctx, c.PostgresURL, c.Origin.SlotName(), c.Origin.Schema)
	if err != nil {
		return nil, err
	}
	s := &session{Config: c, guard: g, source: sink.Source{SystemID: g.SystemID, Slot: c.Origin.SlotName()}, messages: messages}
	if s.confirmed, err = g.confirmed(ctx); err != nil {
		g.Close()
		return nil, err
	}
	return s, nil
}

// checkDeadLetterTable refuses a dead-letter table that is older than this program: asking it
// what was dropped would fail for ever.
func (c Config) checkDeadLetterTable(ctx context.Context) error {
	err := c.ClickHouse.Exec(ctx, `SELECT `+sink.DeadLetterNotWritten+` FROM `+sink.Quote(c.Tables.DeadLetter)+` LIMIT 0`)
	switch {
	case proto.Error(sink.Code(err)) == proto.ErrUnknownIdentifier:
		return fmt.Errorf("table %s lacks a column: run `streamer migrate up`", c.Tables.DeadLetter)
	case err != nil:
		return fmt.Errorf("look at %s: %w", c.Tables.DeadLetter, sink.Classify(err))
	}
	return nil
}

// filler takes the lock and ends inserts that an earlier replay left running.
func (s *session) filler(ctx context.Context, source sink.Source, timeline sink.Timeline, m Mode, report *Report) (*filler, error) {
	tables := s.Tables
	switch m.Into {
	case "":
	case tables.EventLog:
		return nil, fmt.Errorf("--into %s is the event log itself: without --into what is missing there is filled", m.Into)
	case tables.DeadLetter:
		return nil, fmt.Errorf("--into %s is the dead-letter table: name another", m.Into)
	default:
		if _, err := clickhouse.QuoteIdentifier(m.Into); err != nil {
			return nil, fmt.Errorf("--into: %w", err)
		}
		tables.EventLog = m.Into
	}
	if err := s.guard.lock(ctx); err != nil {
		return nil, err
	}
	log := s.eventLog(sink.New(s.ClickHouse, tables, source, timeline), tables)
	f := &filler{
		log: log, sink: log.sink,
		source: source, others: s.otherSources(), guard: s.guard, prefix: s.source.QueryPrefix() + "replay-", nonce: strings.ToLower(rand.Text()),
		useDeadLetters: m.Into == "", dryRun: m.DryRun, timeout: s.InsertTimeout, logger: s.Log, report: report,
	}
	if err := f.sink.CheckTables(ctx); err != nil {
		if proto.Error(sink.Code(err)) == proto.ErrUnknownTable && m.Into != "" {
			return nil, fmt.Errorf("table %s does not exist: CREATE TABLE %s AS %s", m.Into, m.Into, s.Tables.EventLog)
		}
		return nil, err
	}
	return f, f.sink.Fence(ctx, f.prefix, func(uint64) {})
}

// eventLog reads tables for to, which writes to them.
func (s *session) eventLog(to *sink.Sink, tables sink.Tables) eventLog {
	conn := s.Reader
	if conn == nil {
		conn = s.ClickHouse
	}
	to.ReadThrough(conn)
	return eventLog{conn: conn, sink: to, name: sink.Quote(tables.EventLog), deadLetter: sink.Quote(tables.DeadLetter)}
}

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
	history, err := s.history(ctx)
	if err != nil {
		return report, err
	}
	f, err := s.filler(ctx, s.source, history.TimelineAt, m, &report)
	if err != nil || w.from == w.to {
		return report, err
	}
	err = w.each(ctx, func(ctx context.Context, p chunk) error {
		return f.fill(ctx, p.rows, func(ctx context.Context) (gap, error) { return f.compare(ctx, p) }, p.rows.Position)
	})
	report.Took = time.Since(began)
	return report, err
}

// history is the server's, which knows the timeline of each part of its WAL.
func (s *session) history(ctx context.Context) (replication.History, error) {
	conn, err := replication.Connect(ctx, s.PostgresURL, "diehard-streamer-replay", senderTimeout, nil)
	if err != nil {
		return replication.History{}, err
	}
	defer conn.Close()
	sys, err := conn.Identify(ctx)
	if err != nil {
		return replication.History{}, err
	}
	return conn.History(ctx, sys.Timeline)
}

// wal finds the bookmark that can serve r.
func (s *session) wal(ctx context.Context, r Range) (*wal, error) {
	marks := &Bookmarks{conn: s.guard.Conn, slot: s.Origin.SlotName()}
	mark, err := marks.serve(ctx, r)
	if err != nil {
		return nil, err
	}
	from, to := max(r.From, mark.Slot.ConfirmedFlush), s.confirmed
	switch {
	case r.To != 0 && r.To < from:
		return nil, fmt.Errorf("--to-lsn %s lies before the start, %s", r.To, from)
	case from > to:
		return nil, fmt.Errorf("the streamer has confirmed %s only: what is committed from %s on is still to be delivered, not missing", to, from)
	case r.To != 0:
		to = min(to, r.To)
	}
	w := &wal{url: s.PostgresURL, publication: s.Origin.PublicationName(), slot: mark.Slot.Name, from: from, to: to, limits: s.Limits, messages: s.messages, localOnly: s.Origin.LocalOnly}
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
		if m.Slot.Lost() && m.Name != r.Bookmark || r.Bookmark != "" && m.Name != r.Bookmark || r.From != 0 && m.Slot.ConfirmedFlush > r.From {
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
	case best.Slot.Lost():
		return Bookmark{}, fmt.Errorf("bookmark %s is lost: PostgreSQL has removed WAL it needed (max_slot_wal_keep_size); %s. %s", best.Name, describe(list), table)
	}
	return *best, nil
}

// compare returns what of p is missing in the table, by position. Dead letters are
// read before the table: a row that is retried meanwhile is seen in at least one of them.
func (f *filler) compare(ctx context.Context, p chunk) (gap, error) {
	deadLetters := make(map[decode.Position]bool)
	if f.useDeadLetters {
		err := f.log.deadLetters(ctx, f.source.String(), p, func(at decode.Position) { deadLetters[at] = true })
		if err != nil {
			return gap{}, err
		}
	}
	var g gap
	absent, lost, err := f.absent(ctx, p)
	if err != nil {
		return g, err
	}
	g.present = p.rows.Len() + len(p.rows.Rejects) - len(absent) - len(lost)
	for _, i := range absent {
		if deadLetters[p.rows.Position(i)] {
			g.deadLetters++
		} else {
			g.rows = append(g.rows, i)
		}
	}
	for _, i := range lost {
		if deadLetters[p.rows.Rejects[i].Position] {
			g.deadLetters++
		} else {
			g.rejects = append(g.rejects, i)
		}
	}
	return g, f.excludeOtherSources(ctx, p.rows, &g)
}

// absent returns the rows and rejects of p whose positions are not taken.
func (f *filler) absent(ctx context.Context, p chunk) (rows, rejects []int, err error) {
	if p.rows.Empty() {
		return nil, nil, nil
	}
	i, n := 0, p.rows.Len()
	bad := make(map[decode.Position]bool)
	err = f.log.positions(ctx, f.source.String(), p, func(at decode.Position) {
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

// excludeOtherSources takes out of g what is present, or in the dead-letter table, under another position.
func (f *filler) excludeOtherSources(ctx context.Context, rows *decode.Rows, g *gap) error {
	if len(g.rows)+len(g.rejects) == 0 {
		return nil
	}
	f.subset.Reset()
	for _, i := range g.rows {
		e := eventAt(rows, i)
		e.Context = nil
		f.subset.Append(rows.Position(i), 0, &e)
	}
	deadLetters, present := make(map[uuid.UUID]bool), make(map[uuid.UUID]bool)
	if f.useDeadLetters {
		ids := idsOf(&f.subset, 0, f.subset.Len())
		for _, i := range g.rejects {
			ids = append(ids, rows.Rejects[i].ID)
		}
		if err := f.log.deadLettersByID(ctx, f.others, ids, func(id uuid.UUID) { deadLetters[id] = id != uuid.Nil }); err != nil {
			return err
		}
	}
	if err := f.log.present(ctx, f.others, &f.subset, func(id uuid.UUID) { present[id] = true }); err != nil {
		return err
	}
	g.without(rows, present, deadLetters)
	return nil
}

// without takes those events out of g that are present, or are dead letters.
func (g *gap) without(rows *decode.Rows, present, deadLetters map[uuid.UUID]bool) {
	known := func(id uuid.UUID) bool {
		switch {
		case present[id]:
			g.present++
		case deadLetters[id]:
			g.deadLetters++
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
