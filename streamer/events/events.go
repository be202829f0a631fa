// Package events reads event_log: what an investigator asks for, and the events of a
// source as a log, by position, which other programs can consume exactly once.
package events

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	chconfig "diehard/shared/clickhouse"
	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// Event is a row of event_log.
type Event struct {
	Source string
	decode.Position
	CommitTime      time.Time
	IngestedAt      time.Time
	ID              uuid.UUID
	Type            string
	DateTime        time.Time
	Environment     string
	Context         string // as it was published
	MetadataVersion uint64
	TraceID         string
	PublishedBy     string
}

// Table is an event_log. Safe for concurrent use.
type Table struct {
	conn   driver.Conn
	name   string // quoted
	engine string
}

// Open looks at the table called name.
//
// Errors: it does not exist.
func Open(ctx context.Context, conn driver.Conn, name string) (*Table, error) {
	t := &Table{conn: conn, name: sink.Quote(name)}
	err := conn.QueryRow(ctx, `
		SELECT anyLast(engine) FROM system.tables WHERE database = currentDatabase() AND name = {table:String}`,
		clickhouse.Named("table", name)).Scan(&t.engine)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look at table %s: %w", name, sink.Classify(err))
	case t.engine == "":
		return nil, fmt.Errorf("table %s does not exist: run `streamer migrate up`, or correct CLICKHOUSE_EVENT_LOG_TABLE_NAME", name)
	}
	return t, nil
}

// Filter chooses events. An empty field does not restrict.
type Filter struct {
	Since, Until time.Time // event_date_time, from Since up to but without Until
	Types        []string  // * stands for any text
	IDs          []uuid.UUID
	Trace        string // trace_id
	Where        string // a condition in SQL
	Source       string
}

// columns are those of event_log without timeline, in the order in which read scans them.
const columns = `source, commit_lsn, commit_seq, commit_time, ingested_at, event_id, event_type, toUnixTimestamp64Micro(event_date_time), environment, event_context, metadata_version, trace_id, published_by`

// condition is f for WHERE, with its arguments.
func (f Filter) condition() (string, []any) {
	conditions, args := []string{"true"}, []any{}
	add := func(condition string, value any) {
		name := fmt.Sprintf("p%d", len(args))
		conditions = append(conditions, strings.ReplaceAll(condition, "{}", "{"+name+":String}"))
		args = append(args, clickhouse.Named(name, value))
	}
	if !f.Since.IsZero() {
		add("event_date_time >= fromUnixTimestamp64Micro(toInt64({}), 'UTC')", fmt.Sprint(f.Since.UnixMicro()))
	}
	if !f.Until.IsZero() {
		add("event_date_time < fromUnixTimestamp64Micro(toInt64({}), 'UTC')", fmt.Sprint(f.Until.UnixMicro()))
	}
	if f.Source != "" {
		add("source = {}", f.Source)
	}
	if f.Trace != "" {
		add("trace_id = {}", f.Trace)
	}
	var types []string
	for _, pattern := range f.Types {
		name := fmt.Sprintf("p%d", len(args))
		args = append(args, clickhouse.Named(name, likePattern(pattern)))
		types = append(types, "event_type LIKE {"+name+":String}")
	}
	if types != nil {
		conditions = append(conditions, "("+strings.Join(types, " OR ")+")")
	}
	if len(f.IDs) > 0 {
		ids := make([]string, len(f.IDs))
		for i, id := range f.IDs {
			ids[i] = "toUUID('" + id.String() + "')"
		}
		conditions = append(conditions, "event_id IN ("+strings.Join(ids, ", ")+")")
	}
	if f.Where != "" {
		conditions = append(conditions, "(\n"+f.Where+"\n)") // a comment in it ends with its line
	}
	return strings.Join(conditions, " AND "), args
}

// likePattern translates * to LIKE's %, and escapes what LIKE takes for a pattern.
func likePattern(pattern string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, `*`, `%`).Replace(pattern)
}

// Latest returns the last limit events of f by event_date_time, the latest last.
func (t *Table) Latest(ctx context.Context, f Filter, limit int) ([]Event, error) {
	condition, args := f.condition()
	list, err := t.read(ctx, condition+fmt.Sprintf(" ORDER BY event_date_time DESC, source DESC, commit_lsn DESC, commit_seq DESC LIMIT %d", limit), args)
	slices.Reverse(list)
	return list, err
}

// aroundTime is how far from an event others are of interest.
const aroundTime = 5 * time.Minute

// ErrNoEvent means that no event has the id.
var ErrNoEvent = errors.New("no event has this id")

// Around returns the event with the id, the others of its transaction and of its
// trace, and those within five minutes that f chooses, in order of event_date_time,
// at most limit. What is nearer in time comes before what is farther.
//
// Errors: ErrNoEvent.
func (t *Table) Around(ctx context.Context, id uuid.UUID, f Filter, limit int) ([]Event, error) {
	found, err := t.Latest(ctx, Filter{IDs: []uuid.UUID{id}}, 1)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoEvent, id)
	}
	e := found[0]
	chosen, args := f.condition()
	at := fmt.Sprintf("fromUnixTimestamp64Micro(toInt64(%d), 'UTC')", e.DateTime.UnixMicro())
	args = append(args, clickhouse.Named("around_source", e.Source))
	together := fmt.Sprintf("(source = {around_source:String} AND commit_lsn = %d)", uint64(e.LSN))
	if e.TraceID != "" {
		together = "(" + together + " OR trace_id = {around_trace:String})"
		args = append(args, clickhouse.Named("around_trace", e.TraceID))
	}
	seconds := int(aroundTime.Seconds())
	near := fmt.Sprintf("(event_date_time BETWEEN %s - INTERVAL %d SECOND AND %s + INTERVAL %d SECOND AND %s)", at, seconds, at, seconds, chosen)
	list, err := t.read(ctx, fmt.Sprintf("%s OR %s ORDER BY %s DESC, abs(dateDiff('microsecond', event_date_time, %s)), source, commit_lsn, commit_seq LIMIT %d",
		together, near, together, at, limit), args)
	slices.SortFunc(list, func(a, b Event) int {
		return cmp.Or(a.DateTime.Compare(b.DateTime), cmp.Compare(a.Source, b.Source), cmp.Compare(a.LSN, b.LSN), cmp.Compare(a.Seq, b.Seq))
	})
	return list, err
}

// read returns the rows for which rest, a condition and what may follow it, holds.
func (t *Table) read(ctx context.Context, rest string, args []any) ([]Event, error) {
	ctx = chconfig.ReadOwnWrites(ctx, t.engine)
	rows, err := t.conn.Query(ctx, `SELECT `+columns+` FROM `+t.name+` WHERE `+rest, args...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.name, err)
	}
	defer rows.Close()
	var list []Event
	for rows.Next() {
		var e Event
		var lsn uint64
		var at int64 // the driver's times end in the year 2262
		err := rows.Scan(&e.Source, &lsn, &e.Seq, &e.CommitTime, &e.IngestedAt, &e.ID, &e.Type, &at, &e.Environment, &e.Context, &e.MetadataVersion,
			&e.TraceID, &e.PublishedBy)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", t.name, err)
		}
		e.LSN, e.DateTime = pglogrepl.LSN(lsn), time.UnixMicro(at).UTC()
		list = append(list, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", t.name, err)
	}
	return list, nil
}

// Sources returns the sources of the table that suffix ends, in order.
func (t *Table) Sources(ctx context.Context, suffix string) ([]string, error) {
	var found []struct {
		Source string `ch:"source"`
	}
	err := t.conn.Select(ctx, &found, `SELECT DISTINCT source FROM `+t.name+` WHERE endsWith(source, {suffix:String}) ORDER BY source`, clickhouse.Named("suffix", suffix))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.name, sink.Classify(err))
	}
	names := make([]string, len(found))
	for i, f := range found {
		names[i] = f.Source
	}
	return names, nil
}
