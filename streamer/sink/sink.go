// Package sink writes rows to ClickHouse: one insert, one block, one part. It
// knows the errors of ClickHouse by class, and where in the stream the table ends.
package sink

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pglogrepl"

	ours "diehard/shared/clickhouse"
	"diehard/shared/failure"
	"diehard/streamer/decode"
)

// Sink writes to one event_log table. Not safe for concurrent use, except for
// the queries that only read.
type Sink struct {
	conn       ours.Conn
	reader     driver.Conn // see ReadThrough
	tables     Tables
	table      string // quoted
	deadLetter string // quoted
	quorum     bool
	source     Source
	timeline   Timeline
	encoder    encoder
	// Of event_log's engine, see CheckEngine and Decide.
	knowsEngine, replicated, mayLag bool
	window                          int
	// newer are those of NewerInsertSettings that the server has, see CheckTables.
	newer []string
	// textIndexes are those of event_log, which inserts leave to merges, see CheckTables.
	textIndexes string
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

// Tables names the tables of a Sink. Deduplication by token needs a window on them,
// which the migrations set.
type Tables struct {
	EventLog   string
	DeadLetter string
	// Quorum says that inserts need several replicas (CLICKHOUSE_INSERT_QUORUM).
	Quorum bool
	// Cluster names the cluster whose replicas are asked for what they run; "" for the node that answers.
	Cluster string
}

// Timeline returns the timeline that the WAL at a position belongs to.
type Timeline func(pglogrepl.LSN) uint32

// OnTimeline is for rows that are all of one timeline.
func OnTimeline(n uint32) Timeline { return func(pglogrepl.LSN) uint32 { return n } }

// New returns a Sink for the rows of source. timeline of its commit is stored with each row.
func New(conn ours.Conn, t Tables, source Source, timeline Timeline) *Sink {
	return &Sink{
		conn: conn, reader: conn, tables: t, table: Quote(t.EventLog), deadLetter: Quote(t.DeadLetter), quorum: t.Quorum,
		source: source, timeline: timeline,
	}
}

// InsertRequest identifies one attempt to write a block.
type InsertRequest struct {
	QueryID string // unique; begins with Source.QueryPrefix
	Token   string // equal for attempts to write the same block, otherwise unique
	// IngestedAt is equal for attempts to write the same block: it decides the partition,
	// and ClickHouse remembers tokens per partition.
	IngestedAt time.Time
	// Verify is called when ClickHouse knows the query, whose time limit runs from then
	// on, and has not yet received its data. When it fails, nothing is inserted.
	Verify func(context.Context) error
	// WithoutViews inserts whatever the materialized views on the table make of it.
	WithoutViews bool
	// ViewFailed is called when a materialized view refuses the insert, which goes on without it; it may be nil.
	ViewFailed func(*ViewError)
}

// Insert writes rows [from, to) as one block, and returns when they are durable
// under the settings of the table. from must be less than to.
//
// Errors: by class, see classify; after one that is not the server's own the
// outcome is unknown. Whatever Verify returns comes back as it is, with nothing inserted.
func (s *Sink) Insert(ctx context.Context, rows *decode.Rows, from, to int, a InsertRequest) error {
	r := rowRange{rows: rows, from: from, to: to, timeline: s.timeline, source: s.source.String(), ingestedAt: a.IngestedAt.UnixMilli()}
	op := fmt.Sprintf("insert %d rows at %s", to-from, rows.Position(from).LSN)
	return s.insert(ctx, op, s.tables.EventLog, eventLog, a, func(i ours.Insert) (send, error) {
		columns, err := s.encoder.encode(i.Columns(), r)
		return func() error { return i.SendBlock(columns) }, err
	})
}

// send ends an insert whose rows are ready.
type send func() error

// insert registers the query, verifies, and only then sends the data.
func (s *Sink) insert(ctx context.Context, op, table string, cols []col, a InsertRequest, fill func(ours.Insert) (send, error)) error {
	i, err := s.register(ctx, table, "INSERT INTO "+Quote(table)+" ("+names(cols)+")", a)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := a.Verify(ctx); err != nil {
		_ = i.Abort() // closes the connection: nothing is inserted
		return err
	}
	send, err := fill(i)
	if err != nil {
		_ = i.Abort() // closes the connection: nothing is inserted
		return failure.Wrap(failure.Fatal, fmt.Errorf("%s: %w", op, err))
	}
	if err := send(); err != nil {
		return fmt.Errorf("%s: %w", op, classify(err))
	}
	return nil
}

// receiveTimeout is how long ClickHouse waits for each packet of an insert that it has registered.
const receiveTimeout = 10 * time.Second

// InsertBound is the longest time from the registration of an insert whose context ends
// after timeout until ClickHouse is done with it: clickhouse-go adds five seconds to the
// context's time for max_execution_time, and the waits for the block, its parts and the
// end marker add up when the client freezes at each. A disk or Keeper that stalls during
// the commit is not bounded: see Running.
func InsertBound(timeout time.Duration) time.Duration {
	return timeout + 5*time.Second + 3*receiveTimeout
}

// InsertSettings are those on which exactly one row per event depends. They are sent with
// every insert, so that no profile decides them.
func InsertSettings() clickhouse.Settings {
	return clickhouse.Settings{
		"async_insert":       0, // a block of ours is durable when it is answered, and never merged with another insert
		"insert_deduplicate": 1,
		// A view whose insert failed gets the block with the repeated insert; one that has it drops it.
		"deduplicate_blocks_in_dependent_materialized_views": 1,
		"receive_timeout":                         int(receiveTimeout.Seconds()),
		"timeout_before_checking_execution_speed": 0, // max_execution_time is taken by the clock
	}
}

// NewerInsertSettings are sent, too, to servers that have them.
var NewerInsertSettings = clickhouse.Settings{
	"deduplicate_insert": "enable", // 26.2 and newer: it overrides insert_deduplicate
	// 26.4 and newer: max_insert_block_size would make several parts of a block, and a view with
	// SELECT * would not get along with columns like _part.
	"use_strict_insert_block_limits":   0,
	"asterisk_include_virtual_columns": 0,
}

func (s *Sink) insertSettings(token string) clickhouse.Settings {
	settings := InsertSettings()
	settings["insert_deduplication_token"] = token
	for _, name := range s.newer {
		settings[name] = NewerInsertSettings[name]
	}
	if s.textIndexes != "" { // at an insert it costs more than the insert
		settings["exclude_materialize_skip_indexes_on_insert"] = s.textIndexes
	}
	return settings
}

func names(cols []col) string {
	list := make([]string, len(cols))
	for i, c := range cols {
		list[i] = c.name
	}
	return strings.Join(list, ", ")
}
