package replay

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// eventLog is a table with the schema of event_log, for reading. What it shows decides on
// what is written or reported, so that each answer is that of an up-to-date replica.
type eventLog struct {
	conn       driver.Conn
	sink       *sink.Sink // reads through conn
	name       string     // quoted
	deadLetter string     // quoted
}

// ask calls do for each row of the answer to query, whose order must be fixed.
func ask[T comparable](ctx context.Context, l eventLog, table string, scan func(driver.Rows) (T, error), do func(T), query string, args ...any) error {
	list, err := sink.Await(ctx, l.sink, func(ctx context.Context) (list []T, err error) {
		rows, err := l.conn.Query(ctx, query, args...)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", table, sink.Classify(err))
		}
		defer rows.Close()
		for rows.Next() {
			r, err := scan(rows)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", table, sink.Classify(err))
			}
			list = append(list, r)
		}
		if err := rows.Err(); err != nil {
			return nil, fmt.Errorf("read %s: %w", table, sink.Classify(err))
		}
		return list, nil
	}, slices.Equal)
	for _, r := range list {
		do(r)
	}
	return err
}

// sources chooses rows by their source.
type sources struct {
	condition string
	args      []any
}

var anySource = sources{condition: "true"}

// otherSources are those that may have written events of s under another position:
// replays from the table, and streamers with another number of shards.
func (s *session) otherSources() sources {
	form := "^" + s.source.SystemID + "/" + s.Origin.ShardingPattern() + "(?:/table)?$"
	return sources{"source <> ? AND match(source, ?)", []any{s.source.String(), form}}
}

// logRow is a row of event_log.
type logRow struct {
	decode.Position
	ID uuid.UUID
	content
}

// content is what two events with the same id may differ in.
type content struct {
	Type        string
	DateTime    int64 // microseconds since 1970
	Environment string
	Version     uint64
	TraceID     string
	PublishedBy string
	Digest      [32]byte // SHA-256 of the context
}

// contentAt is that of row i.
func contentAt(rows *decode.Rows, i int) content {
	return content{
		Type: rows.Type.Values[rows.Type.Keys[i]], DateTime: rows.DateTime[i],
		Environment: rows.Environment.Values[rows.Environment.Keys[i]], Version: rows.MetadataVersion[i],
		TraceID: rows.TraceIDAt(i), PublishedBy: rows.PublishedBy.Values[rows.PublishedBy.Keys[i]],
		Digest: sha256.Sum256(rows.ContextAt(i)),
	}
}

// differences names the columns in which c and d differ; empty if they are equal.
func (c content) differences(d content) string {
	var columns []string
	differ := func(column string, different bool) {
		if different {
			columns = append(columns, column)
		}
	}
	differ("event_type", c.Type != d.Type)
	differ("event_date_time", c.DateTime != d.DateTime)
	differ("environment", c.Environment != d.Environment)
	differ("event_context", c.Digest != d.Digest)
	differ("metadata_version", c.Version != d.Version)
	differ("trace_id", c.TraceID != d.TraceID)
	differ("published_by", c.PublishedBy != d.PublishedBy)
	return strings.Join(columns, ", ")
}

// take removes the row that has content c from rows; if there is none, and any is
// wanted, the first.
func take(rows []logRow, c content, any bool) (r logRow, rest []logRow, ok bool) {
	i := slices.IndexFunc(rows, func(r logRow) bool { return r.content == c })
	if i < 0 && any && len(rows) > 0 {
		i = 0
	}
	if i < 0 {
		return logRow{}, rows, false
	}
	r = rows[i]
	return r, slices.Delete(rows, i, i+1), true
}

const within = `(commit_lsn, commit_seq) > (toUInt64(?), toUInt32(?)) AND (commit_lsn, commit_seq) <= (toUInt64(?), toUInt32(?))
	AND commit_lsn >= toUInt64(?) AND commit_lsn <= toUInt64(?)`

func (p chunk) bounds() []any {
	return []any{uint64(p.after.LSN), p.after.Seq, uint64(p.upTo.LSN), p.upTo.Seq, uint64(p.after.LSN), uint64(p.upTo.LSN)}
}

// positions calls do for the position of every row of source in p, in stream order.
func (l eventLog) positions(ctx context.Context, source string, p chunk, do func(decode.Position)) error {
	return ask(ctx, l, l.name, scanPosition, do, `SELECT commit_lsn, commit_seq FROM `+l.name+` WHERE source = ? AND `+within+`
		ORDER BY commit_lsn, commit_seq`, append([]any{source}, p.bounds()...)...)
}

// deadLetters calls do for the position of every dead letter of source in p whose event is not in event_log.
func (l eventLog) deadLetters(ctx context.Context, source string, p chunk, do func(decode.Position)) error {
	return ask(ctx, l, l.deadLetter, scanPosition, do, `SELECT commit_lsn, commit_seq FROM `+l.deadLetter+` FINAL
		WHERE source = ? AND `+within+` AND `+sink.DeadLetterNotWritten+` ORDER BY commit_lsn, commit_seq`, append([]any{source}, p.bounds()...)...)
}

func scanPosition(rows driver.Rows) (at decode.Position, err error) {
	var lsn uint64
	err = rows.Scan(&lsn, &at.Seq)
	at.LSN = pglogrepl.LSN(lsn)
	return at, err
}

const logColumns = `commit_lsn, commit_seq, event_id, event_type, toUnixTimestamp64Micro(event_date_time), environment,
	metadata_version, trace_id, published_by, SHA256(event_context)`

// contents calls do for every row of source in p, in stream order.
func (l eventLog) contents(ctx context.Context, source string, p chunk, do func(logRow)) error {
	return ask(ctx, l, l.name, scanContent, do, `SELECT `+logColumns+` FROM `+l.name+` WHERE source = ? AND `+within+`
		ORDER BY commit_lsn, commit_seq`, append([]any{source}, p.bounds()...)...)
}

func scanContent(rows driver.Rows) (r logRow, err error) {
	var lsn uint64
	var digest string
	err = rows.Scan(&lsn, &r.Seq, &r.ID, &r.Type, &r.DateTime, &r.Environment, &r.Version, &r.TraceID, &r.PublishedBy, &digest)
	r.LSN = pglogrepl.LSN(lsn)
	copy(r.Digest[:], digest)
	return r, err
}

// idsAtOnce keeps a query with a list of ids below ClickHouse's max_query_size of 256 KiB.
const idsAtOnce = 4000

// byID calls do for every row of the table with the id of one of rows.
func (l eventLog) byID(ctx context.Context, from sources, rows *decode.Rows, do func(logRow)) error {
	return lookUp(ctx, l, from, rows, logColumns, scanContent, do)
}

// byIDs calls do for every row of the table with one of ids.
func (l eventLog) byIDs(ctx context.Context, ids []uuid.UUID, do func(logRow)) error {
	for chunk := range slices.Chunk(ids, idsAtOnce) {
		err := ask(ctx, l, l.name, scanContent, do, `SELECT `+logColumns+` FROM `+l.name+` WHERE event_id IN (`+idList(chunk)+`)
			ORDER BY commit_lsn, commit_seq, event_id`)
		if err != nil {
			return err
		}
	}
	return nil
}

// present calls do for those ids of rows that are in the table.
func (l eventLog) present(ctx context.Context, from sources, rows *decode.Rows, do func(uuid.UUID)) error {
	return lookUp(ctx, l, from, rows, "event_id", scanID, do)
}

// lookUp looks for each id under the type and time of its row: both never change,
// and they lead to its position in the table.
func lookUp[T comparable](ctx context.Context, l eventLog, from sources, rows *decode.Rows, columns string, scan func(driver.Rows) (T, error), do func(T)) error {
	for i := 0; i < rows.Len(); i += idsAtOnce {
		end := min(i+idsAtOnce, rows.Len())
		low, high := slices.Min(rows.DateTime[i:end]), slices.Max(rows.DateTime[i:end])
		err := ask(ctx, l, l.name, scan, do, `SELECT `+columns+` FROM `+l.name+` WHERE event_id IN (`+idList(idsOf(rows, i, end))+`)
			AND event_date_time BETWEEN fromUnixTimestamp64Micro(toInt64(?), 'UTC') AND fromUnixTimestamp64Micro(toInt64(?), 'UTC')
			AND `+from.condition+` AND `+typeCondition(rows.Type.Values)+` ORDER BY event_id, commit_lsn, commit_seq`, append([]any{low, high}, from.args...)...)
		if err != nil {
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

// deadLettersByID calls do for each of ids that is a dead letter, and not in event_log.
func (l eventLog) deadLettersByID(ctx context.Context, from sources, ids []uuid.UUID, do func(uuid.UUID)) error {
	some := false
	err := ask(ctx, l, l.deadLetter, scanFlag, func(found bool) { some = found }, `SELECT count() > 0 FROM `+l.deadLetter+` FINAL WHERE `+sink.DeadLetterNotWritten)
	if err != nil || !some {
		return err
	}
	for chunk := range slices.Chunk(ids, idsAtOnce) {
		err := ask(ctx, l, l.deadLetter, scanID, do, `SELECT event_id FROM `+l.deadLetter+` FINAL
			WHERE event_id IN (`+idList(chunk)+`) AND `+from.condition+` AND `+sink.DeadLetterNotWritten+` ORDER BY event_id`, from.args...)
		if err != nil {
			return err
		}
	}
	return nil
}

func scanID(rows driver.Rows) (id uuid.UUID, err error) {
	err = rows.Scan(&id)
	return id, err
}

func scanFlag(rows driver.Rows) (bool, error) {
	var flag uint8
	err := rows.Scan(&flag)
	return flag != 0, err
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
