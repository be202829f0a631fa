package replay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// eventLog is a table with the schema of event_log, for reading.
type eventLog struct {
	conn       driver.Conn
	name       string // quoted
	deadLetter string // quoted
}

func quote(name string) string { return "`" + strings.ReplaceAll(name, "`", "\\`") + "`" }

// sources chooses rows by who has landed them.
type sources struct {
	condition string
	args      []any
}

var anybody = sources{condition: "true"}

// elsewhere is what may have landed events of s without their place in its WAL:
// replays from the table, and streamers that divided the same outbox differently.
func (s *session) elsewhere() sources {
	form := "^" + s.source.SystemID + "/" + s.Shard.Divisions(s.Slot) + "(?:/table)?$"
	return sources{"source <> ? AND match(source, ?)", []any{s.source.String(), form}}
}

// logRow is a row of event_log with what identifies its content.
type logRow struct {
	decode.Position
	ID          uuid.UUID
	Type        string
	DateTime    int64 // microseconds since 1970
	Environment string
	Version     uint64
	Digest      [32]byte // SHA-256 of the context
}

const within = `(commit_lsn, commit_seq) > (toUInt64(?), toUInt32(?)) AND (commit_lsn, commit_seq) <= (toUInt64(?), toUInt32(?))
	AND commit_lsn >= toUInt64(?) AND commit_lsn <= toUInt64(?)`

func (p piece) bounds() []any {
	return []any{uint64(p.after.LSN), p.after.Seq, uint64(p.upTo.LSN), p.upTo.Seq, uint64(p.after.LSN), uint64(p.upTo.LSN)}
}

// positions calls do for the place of every row of source in p, in stream order.
// Only rows ingested at since or later count; older parts are not read.
func (l eventLog) positions(ctx context.Context, source string, p piece, since time.Time, do func(decode.Position)) error {
	rows, err := l.conn.Query(ctx, `SELECT commit_lsn, commit_seq FROM `+l.name+` WHERE source = ? AND `+within+`
		AND ingested_at >= fromUnixTimestamp64Milli(toInt64(?), 'UTC') ORDER BY commit_lsn, commit_seq`,
		append(append([]any{source}, p.bounds()...), since.UnixMilli())...)
	if err != nil {
		return fmt.Errorf("read %s: %w", l.name, sink.Classify(err))
	}
	return scanPositions(rows, l.name, do)
}

// setAside calls do for the place of every dead letter of source in p whose event is not in event_log.
func (l eventLog) setAside(ctx context.Context, source string, p piece, do func(decode.Position)) error {
	rows, err := l.conn.Query(ctx, `SELECT commit_lsn, commit_seq FROM `+l.deadLetter+` FINAL
		WHERE source = ? AND `+within+` AND `+notLanded, append([]any{source}, p.bounds()...)...)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", sink.Classify(err))
	}
	return scanPositions(rows, l.deadLetter, do)
}

func scanPositions(rows driver.Rows, table string, do func(decode.Position)) error {
	defer rows.Close()
	for rows.Next() {
		var lsn uint64
		var seq uint32
		if err := rows.Scan(&lsn, &seq); err != nil {
			return fmt.Errorf("read %s: %w", table, sink.Classify(err))
		}
		do(decode.Position{LSN: pglogrepl.LSN(lsn), Seq: seq})
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read %s: %w", table, sink.Classify(err))
	}
	return nil
}

const logColumns = `commit_lsn, commit_seq, event_id, event_type, toUnixTimestamp64Micro(event_date_time), environment,
	metadata_version, SHA256(event_context)`

// contents calls do for every row of source in p, in stream order.
func (l eventLog) contents(ctx context.Context, source string, p piece, do func(logRow)) error {
	rows, err := l.conn.Query(ctx, `SELECT `+logColumns+` FROM `+l.name+` WHERE source = ? AND `+within+`
		ORDER BY commit_lsn, commit_seq`, append([]any{source}, p.bounds()...)...)
	if err != nil {
		return fmt.Errorf("read %s: %w", l.name, sink.Classify(err))
	}
	return scanContents(rows, l.name, do)
}

func scanContents(rows driver.Rows, table string, do func(logRow)) error {
	defer rows.Close()
	for rows.Next() {
		var r logRow
		var lsn uint64
		var digest string
		if err := rows.Scan(&lsn, &r.Seq, &r.ID, &r.Type, &r.DateTime, &r.Environment, &r.Version, &digest); err != nil {
			return fmt.Errorf("read %s: %w", table, sink.Classify(err))
		}
		r.LSN = pglogrepl.LSN(lsn)
		copy(r.Digest[:], digest)
		do(r)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read %s: %w", table, sink.Classify(err))
	}
	return nil
}

// idsAtOnce keeps a query with a list of ids below ClickHouse's max_query_size of 256 KiB.
const idsAtOnce = 4000

// byID calls do for every row of the table with the id of one of rows.
func (l eventLog) byID(ctx context.Context, from sources, rows *decode.Rows, do func(logRow)) error {
	return l.lookUp(ctx, logColumns, from, rows, func(found driver.Rows) error { return scanContents(found, l.name, do) })
}

// present calls do for those ids of rows that are in the table.
func (l eventLog) present(ctx context.Context, from sources, rows *decode.Rows, do func(uuid.UUID)) error {
	return l.lookUp(ctx, "event_id", from, rows, func(found driver.Rows) error { return scanIDs(found, l.name, do) })
}

// lookUp looks for each id under the type and time of its row: both never change,
// and they lead to its place in the table.
func (l eventLog) lookUp(ctx context.Context, columns string, from sources, rows *decode.Rows, scan func(driver.Rows) error) error {
	for i := 0; i < rows.Len(); i += idsAtOnce {
		end := min(i+idsAtOnce, rows.Len())
		low, high := slices.Min(rows.DateTime[i:end]), slices.Max(rows.DateTime[i:end])
		found, err := l.conn.Query(ctx, `SELECT `+columns+` FROM `+l.name+` WHERE event_id IN (`+idList(idsOf(rows, i, end))+`)
			AND event_date_time BETWEEN fromUnixTimestamp64Micro(toInt64(?), 'UTC') AND fromUnixTimestamp64Micro(toInt64(?), 'UTC')
			AND `+from.condition+` AND `+typeCondition(rows.Type.Values), append([]any{low, high}, from.args...)...)
		if err != nil {
			return fmt.Errorf("read %s: %w", l.name, sink.Classify(err))
		}
		if err := scan(found); err != nil {
			return err
		}
	}
	return nil
}

// typeCondition helps ClickHouse to find its way; too many types would not.
func typeCondition(types []string) string {
	const many = 64
	if len(types) > many {
		return "true"
	}
	quoted := make([]string, len(types))
	for i, t := range types {
		quoted[i] = "unhex('" + fmt.Sprintf("%X", t) + "')"
	}
	return "event_type IN (" + strings.Join(quoted, ",") + ")"
}

// notLanded is the condition for dead letters whose event is not in event_log: they wait for their retry, or were dropped.
const notLanded = `(toUnixTimestamp64Milli(retried_at) = 0 OR dropped)`

// lettersByID calls do for each of ids that is a dead letter, and not in event_log.
func (l eventLog) lettersByID(ctx context.Context, from sources, ids []uuid.UUID, do func(uuid.UUID)) error {
	var any uint8
	err := l.conn.QueryRow(ctx, `SELECT count() > 0 FROM `+l.deadLetter+` FINAL WHERE `+notLanded).Scan(&any)
	if err != nil {
		return fmt.Errorf("read dead letters: %w", sink.Classify(err))
	}
	if any == 0 {
		return nil
	}
	for chunk := range slices.Chunk(ids, idsAtOnce) {
		found, err := l.conn.Query(ctx, `SELECT event_id FROM `+l.deadLetter+` FINAL
			WHERE event_id IN (`+idList(chunk)+`) AND `+from.condition+` AND `+notLanded, from.args...)
		if err != nil {
			return fmt.Errorf("read dead letters: %w", sink.Classify(err))
		}
		if err := scanIDs(found, l.deadLetter, do); err != nil {
			return err
		}
	}
	return nil
}

func scanIDs(rows driver.Rows, table string, do func(uuid.UUID)) error {
	defer rows.Close()
	for rows.Next() {
		var id uuid.UUID
		if err := rows.Scan(&id); err != nil {
			return fmt.Errorf("read %s: %w", table, sink.Classify(err))
		}
		do(id)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read %s: %w", table, sink.Classify(err))
	}
	return nil
}

// idsOf returns the ids of rows [from, to).
func idsOf(rows *decode.Rows, from, to int) []uuid.UUID {
	ids := make([]uuid.UUID, 0, to-from)
	for i := from; i < to; i++ {
		ids = append(ids, rows.IDAt(i))
	}
	return ids
}

func idList(ids []uuid.UUID) string {
	var list strings.Builder
	for i, id := range ids {
		if i > 0 {
			list.WriteByte(',')
		}
		list.WriteByte('\'')
		list.WriteString(id.String())
		list.WriteByte('\'')
	}
	return list.String()
}
