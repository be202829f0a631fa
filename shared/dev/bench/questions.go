package main

import (
	"context"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// withoutIndex ends the name of a question that is asked without the indexes of event_log.
const withoutIndex = ", no index"

// question is one of an investigator, in SQL.
type question struct {
	name, sql string
	// before is how it is asked when there is no text index; empty: the same.
	before string
}

// questions asks what an investigator asks of an event_log, with its indexes and without, with
// cold caches and warm ones.
func questions(ctx context.Context, env *environment) (*report, error) {
	t, err := openQuestions(ctx, env)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.conn.Close() }()
	list, err := t.questions(ctx)
	if err != nil {
		return nil, err
	}
	r := newReport("questions", fmt.Sprintf("Questions to %d million events of 50 types over 27 months", t.rows/1_000_000),
		"ms, cold", "ms, from disk", "ms, warm", "CPU ms, cold", "granules", "% of all", "MB read")
	r.control, r.logarithmic = withoutIndex, true
	for range env.Rounds {
		for _, q := range list {
			if err := t.ask(ctx, r, q); err != nil {
				return nil, fmt.Errorf("%s: %w", q.name, err)
			}
		}
	}
	r.notes, err = t.sizes(ctx)
	return r, err
}

// questions are about an event in the middle of the table.
func (t *questionTable) questions(ctx context.Context) ([]question, error) {
	middle := t.rows / 2 / transactionRows &^ 1
	lsn := firstLSN + middle*transactionBytes
	var id, trace, at, user string
	err := t.conn.QueryRow(ctx, `SELECT toString(event_id), trace_id, toString(event_date_time), JSONExtractString(event_context, 'user_id')
		FROM event_log WHERE commit_lsn = ? AND commit_seq = 2`, lsn).Scan(&id, &trace, &at, &user)
	if err != nil {
		return nil, err
	}
	span := func(interval string) string {
		return fmt.Sprintf("event_date_time >= toDateTime64('%[1]s', 6, 'UTC') AND event_date_time < toDateTime64('%[1]s', 6, 'UTC') + INTERVAL %[2]s", at, interval)
	}
	exact := "JSONExtractString(event_context, 'user_id') = '" + user + "'"
	return []question{
		{name: "one event by its id", sql: "SELECT * FROM event_log WHERE event_id = '" + id + "'"},
		{name: "one transaction", sql: fmt.Sprintf("SELECT * FROM event_log WHERE commit_lsn = %d", lsn)},
		{name: "one trace", sql: "SELECT * FROM event_log WHERE trace_id = '" + trace + "'"},
		{name: "the latest 100", sql: "SELECT * FROM event_log ORDER BY event_date_time DESC LIMIT 100"},
		{name: "next 10,000 events", sql: fmt.Sprintf(`SELECT * FROM event_log WHERE commit_lsn >= %[1]d AND commit_lsn <= %[2]d
			AND (commit_lsn, commit_seq) > (%[1]d, 2) ORDER BY commit_lsn, commit_seq LIMIT 10000`, lsn, lsn+10_100/transactionRows*transactionBytes)},
		{name: "one hour, all types", sql: "SELECT event_type, count() FROM event_log WHERE " + span("1 HOUR") + " GROUP BY event_type"},
		{
			name:   "one user, all time",
			sql:    "SELECT * FROM event_log WHERE hasAllTokens(event_context, '" + user + "') AND " + exact,
			before: "SELECT * FROM event_log WHERE " + exact,
		},
		{
			name:   "one user, one week",
			sql:    "SELECT * FROM event_log WHERE hasAllTokens(event_context, '" + user + "') AND " + span("7 DAY") + " AND " + exact,
			before: "SELECT * FROM event_log WHERE " + span("7 DAY") + " AND " + exact,
		},
		{name: "sum of one path, a month", sql: "SELECT sum(JSONExtractFloat(event_context, 'amount')) FROM event_log WHERE event_type = 'order_updated' AND " + span("30 DAY")},
	}, nil
}

const withIndexes, scanning = "use_skip_indexes = 1", "use_skip_indexes = 0"

func (t *questionTable) ask(ctx context.Context, r *report, q question) error {
	before := q.sql
	if q.before != "" {
		before = q.before
	}
	for _, c := range []struct{ name, sql, setting string }{{q.name, q.sql, withIndexes}, {q.name + withoutIndex, before, scanning}} {
		figures, err := t.measure(ctx, c.sql, c.setting)
		if err != nil {
			return err
		}
		t.env.progress("%s: %s", c.name, r.describe(figures))
		r.add(c.name, figures...)
	}
	return nil
}

func (t *questionTable) measure(ctx context.Context, sql, setting string) ([]float64, error) {
	granules, all, err := t.granules(ctx, sql+" SETTINGS "+setting)
	if err != nil {
		return nil, err
	}
	sql += " SETTINGS use_query_condition_cache = 0, " + setting
	disk := math.NaN() // not known of a server that was not started here
	if t.env.clickhouse != nil {
		if err := t.dropFiles(); err != nil {
			return nil, err
		}
		if disk, err = t.timeCold(ctx, sql); err != nil {
			return nil, err
		}
	}
	read, err := t.compressedBytesRead(ctx)
	if err != nil {
		return nil, err
	}
	cold, cpu, err := t.askCold(ctx, sql)
	if err != nil {
		return nil, err
	}
	readAfter, err := t.compressedBytesRead(ctx)
	if err != nil {
		return nil, err
	}
	warm, err := t.time(ctx, sql)
	return []float64{cold, disk, warm, cpu, granules, 100 * granules / all, float64(readAfter-read) / 1e6 / coldAsks}, err
}

// coldAsks is how often a question is asked with cold caches in a round: one answer of a
// tenth of a second depends on what else the machine does in that tenth.
const coldAsks = 5

// askCold returns the median of the times, and the mean of the CPU time, both in milliseconds.
func (t *questionTable) askCold(ctx context.Context, sql string) (median, cpu float64, err error) {
	var times []float64
	before := t.env.serverCPU()
	for range coldAsks {
		ms, err := t.timeCold(ctx, sql)
		if err != nil {
			return 0, 0, err
		}
		times = append(times, ms)
	}
	spent := t.env.serverCPU().since(before)
	slices.Sort(times)
	return times[coldAsks/2], float64(spent.clickhouse.Microseconds()) / 1000 / coldAsks, nil
}

// timeCold is time with nothing in ClickHouse's caches.
func (t *questionTable) timeCold(ctx context.Context, sql string) (float64, error) {
	for _, cache := range caches {
		if err := t.conn.Exec(ctx, "SYSTEM DROP "+cache); err != nil {
			return 0, err
		}
	}
	return t.time(ctx, sql)
}

// time returns the milliseconds until the last row is here.
func (t *questionTable) time(ctx context.Context, sql string) (float64, error) {
	began := time.Now()
	rows, err := t.conn.Query(ctx, sql)
	if err != nil {
		return 0, err
	}
	for rows.Next() {
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	return float64(time.Since(began).Microseconds()) / 1000, rows.Close()
}

var granulesOf = regexp.MustCompile(`Granules: (\d+)/(\d+)`)

// granules returns how many granules sql reads, and how many the table has.
func (t *questionTable) granules(ctx context.Context, sql string) (read, all float64, err error) {
	rows, err := t.conn.Query(ctx, "EXPLAIN indexes = 1 "+sql)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return 0, 0, err
		}
		if found := granulesOf.FindStringSubmatch(line); found != nil {
			read, _ = strconv.ParseFloat(found[1], 64) // digits
			of, _ := strconv.ParseFloat(found[2], 64)
			all = max(all, of)
		}
	}
	return read, all, rows.Err()
}

func (t *questionTable) compressedBytesRead(ctx context.Context) (n uint64, err error) {
	err = t.conn.QueryRow(ctx, "SELECT sum(value) FROM system.events WHERE event = 'ReadCompressedBytes'").Scan(&n)
	return n, err
}

// caches are those of ClickHouse that hold what a query has read.
var caches = []string{
	"MARK CACHE", "UNCOMPRESSED CACHE", "INDEX MARK CACHE", "INDEX UNCOMPRESSED CACHE", "MMAP CACHE",
	"QUERY CONDITION CACHE", "PRIMARY INDEX CACHE", "TEXT INDEX CACHES",
}

// dropFiles removes the table's files from the operating system's cache.
func (t *questionTable) dropFiles() error {
	syscall.Sync()
	return filepath.WalkDir(filepath.Join(t.env.dir, "clickhouse"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil // a part that was merged away
		}
		f, err := os.Open(path) //nolint:gosec // the benchmark's own data
		if err != nil {
			return nil
		}
		defer func() { _ = f.Close() }()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// sizes says what the indexes take on disk.
func (t *questionTable) sizes(ctx context.Context) ([]string, error) {
	var text strings.Builder
	rows, err := t.conn.Query(ctx, `SELECT name, sum(data_compressed_bytes + marks_bytes) FROM system.data_skipping_indices
		WHERE database = currentDatabase() AND table = 'event_log' GROUP BY name ORDER BY name`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var name string
		var bytes uint64
		if err := rows.Scan(&name, &bytes); err != nil {
			return nil, err
		}
		fmt.Fprintf(&text, ", %s %s", name, figure(float64(bytes)/float64(t.rows)))
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	var all, parts uint64
	err = t.conn.QueryRow(ctx, `SELECT sum(bytes_on_disk), count() FROM system.parts
		WHERE database = currentDatabase() AND table = 'event_log' AND active`).Scan(&all, &parts)
	return []string{fmt.Sprintf("bytes per row on disk: %s in %d parts, of which%s", figure(float64(all)/float64(t.rows)), parts, text.String()[1:])}, err
}
