// Package sink lands rows in ClickHouse: one insert, one block, one part. It
// knows the errors of ClickHouse by class, and where in the stream the table ends.
package sink

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/decode"
)

// Sink writes to one event_log table. Not safe for concurrent use, except for
// the queries that only read.
type Sink struct {
	conn       driver.Conn
	table      string // quoted
	deadLetter string // quoted
	quorum     bool
	source     Source
	timeline   uint32
	encoder    *encoder
}

// Source names a pipeline: one PostgreSQL cluster and one of its slots.
type Source struct {
	SystemID string
	Slot     string
}

// String is the value of the column source.
func (s Source) String() string { return s.SystemID + "/" + s.Slot }

// QueryPrefix begins the query id of every insert of this source. Neither part
// can contain a dash, so no prefix begins another.
func (s Source) QueryPrefix() string { return "diehard-" + s.SystemID + "-" + s.Slot + "-" }

// Tables names the tables of a Sink. Deduplication by token needs a window on
// them, which the migrations set; without it a retry relies on the read-back alone.
type Tables struct {
	EventLog   string
	DeadLetter string
	// Quorum says that inserts need several replicas (CLICKHOUSE_INSERT_QUORUM).
	Quorum bool
}

// New returns a Sink for the rows of source. timeline is stored with each row.
func New(conn driver.Conn, t Tables, source Source, timeline uint32) *Sink {
	return &Sink{
		conn: conn, table: quote(t.EventLog), deadLetter: quote(t.DeadLetter), quorum: t.Quorum,
		source: source, timeline: timeline, encoder: newEncoder(),
	}
}

func quote(name string) string { return "`" + strings.ReplaceAll(name, "`", "\\`") + "`" }

// Attempt identifies one try at an insert.
type Attempt struct {
	QueryID string // unique; begins with Source.QueryPrefix
	Token   string // equal for tries at the same rows, otherwise unique
	// IngestedAt is equal for tries at the same rows.
	IngestedAt time.Time
	// Verify is called when ClickHouse knows the query and has not yet got its
	// data. It must fail when the slot is no longer ours. A successor that took
	// over before the check has made it fail; one that takes over after it finds
	// the query running, kills it and waits for its end.
	Verify func(context.Context) error
}

// Insert lands rows [from, to) as one block, and returns when they are durable
// under the settings of the table. from must be less than to.
//
// Errors: by class, see classify; after one that is not the server's own the
// outcome is unknown. Whatever Verify returns comes back as it is, with nothing inserted.
func (s *Sink) Insert(ctx context.Context, rows *decode.Rows, from, to int, a Attempt) error {
	r := rowRange{rows: rows, from: from, to: to, constant: constants{
		source: s.source.String(), timeline: s.timeline, ingestedAt: a.IngestedAt.UnixMilli(),
	}}
	op := fmt.Sprintf("insert %d rows at %s", to-from, rows.Position(from).LSN)
	return s.insert(ctx, op, s.table, eventLog, a, func(columns []column.Interface) error {
		return s.encoder.fill(columns, eventLog, r)
	})
}

// insert registers the query, verifies, and only then sends the data.
func (s *Sink) insert(ctx context.Context, op, table string, cols []col, a Attempt, fill func([]column.Interface) error) error {
	ctx = clickhouse.Context(ctx, clickhouse.WithQueryID(a.QueryID), clickhouse.WithSettings(clickhouse.Settings{
		"async_insert":               0, // a part of ours is durable when we are told so, and never merged with another insert
		"insert_deduplication_token": a.Token,
	}))
	batch, err := s.conn.PrepareBatch(ctx, "INSERT INTO "+table+" ("+names(cols)+")")
	if err != nil {
		return fmt.Errorf("%s: %w", op, classify(err))
	}
	if err := a.Verify(ctx); err != nil {
		_ = batch.Abort() // closes the connection: nothing is inserted
		return err
	}
	if err := fill(batch.Columns()); err != nil {
		_ = batch.Abort() // closes the connection: nothing is inserted
		return failure.Wrap(failure.Fatal, fmt.Errorf("%s: %w", op, err))
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("%s: %w", op, classify(err))
	}
	return nil
}

func names(cols []col) string {
	list := make([]string, len(cols))
	for i, c := range cols {
		list[i] = c.name
	}
	return strings.Join(list, ", ")
}

// CheckTables refuses tables that are not ours.
//
// Errors: failure.Fatal naming the table and the column.
func (s *Sink) CheckTables(ctx context.Context) error {
	rows, err := s.conn.Query(ctx, "DESCRIBE TABLE "+s.table)
	if err != nil {
		return fmt.Errorf("describe %s: %w", s.table, classify(err))
	}
	defer func() { _ = rows.Close() }()
	have := make(map[string]string)
	for rows.Next() {
		var name, typ string
		rest := make([]string, len(rows.Columns())-2)
		dest := []any{&name, &typ}
		for i := range rest {
			dest = append(dest, &rest[i])
		}
		if err := rows.Scan(dest...); err != nil {
			return fmt.Errorf("describe %s: %w", s.table, err)
		}
		have[name] = typ
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("describe %s: %w", s.table, classify(err))
	}
	for _, c := range eventLog {
		if typ := have[c.name]; typ != c.types[0] {
			return failure.Wrap(failure.Fatal, fmt.Errorf(
				"table %s is not ours: column %s is %q and must be %s; use another CLICKHOUSE_EVENT_LOG_TABLE_NAME and run `streamer migrate up`, or change the column",
				s.table, c.name, typ, c.types[0]))
		}
	}
	return nil
}

// Position returns the last row of this source in event_log, and the timeline
// it was written on; zeros when there is none.
//
// Errors: errUnsettled, with Tables.Quorum.
func (s *Sink) Position(ctx context.Context) (decode.Position, uint32, error) {
	end, err := settled(ctx, s.quorum, s.end, func(a, b tableEnd) bool { return a == b })
	return end.Position, end.timeline, err
}

// tableEnd is the last row of a source.
type tableEnd struct {
	decode.Position
	timeline uint32
}

func (s *Sink) end(ctx context.Context) (tableEnd, error) {
	var lsn uint64
	var seq, timeline uint32
	err := s.conn.QueryRow(ctx, `
		SELECT tupleElement(m, 1), tupleElement(m, 2), tupleElement(m, 3)
		FROM (SELECT max((commit_lsn, commit_seq, timeline)) AS m FROM `+s.table+` WHERE source = {source:String})`,
		clickhouse.Named("source", s.source.String())).Scan(&lsn, &seq, &timeline)
	if err != nil {
		return tableEnd{}, fmt.Errorf("read position: %w", classify(err))
	}
	return tableEnd{decode.Position{LSN: pglogrepl.LSN(lsn), Seq: seq}, timeline}, nil
}

// Commits returns the last commit of each slot of this server of which rows are in
// event_log, under its slot's name.
//
// Errors: errUnsettled, with Tables.Quorum.
func (s *Sink) Commits(ctx context.Context) (map[string]pglogrepl.LSN, error) {
	return settled(ctx, s.quorum, s.commits, maps.Equal)
}

func (s *Sink) commits(ctx context.Context) (map[string]pglogrepl.LSN, error) {
	server := Source{SystemID: s.source.SystemID}.String()
	rows, err := s.conn.Query(ctx, `
		SELECT source, tupleElement(max((commit_lsn, commit_seq, timeline)), 1) FROM `+s.table+`
		WHERE startsWith(source, {server:String}) GROUP BY source`, clickhouse.Named("server", server))
	if err != nil {
		return nil, fmt.Errorf("read positions of other slots: %w", classify(err))
	}
	defer func() { _ = rows.Close() }()
	commits := make(map[string]pglogrepl.LSN)
	for rows.Next() {
		var source string
		var lsn uint64
		if err := rows.Scan(&source, &lsn); err != nil {
			return nil, fmt.Errorf("read positions of other slots: %w", err)
		}
		commits[strings.TrimPrefix(source, server)] = pglogrepl.LSN(lsn)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read positions of other slots: %w", classify(err))
	}
	return commits, nil
}
