package replay

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/batch"
	"diehard/streamer/pipeline"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fixture is an outbox with a streamer that delivers from it.
type fixture struct {
	*testenv.Env
	t      *testing.T
	tables sink.Tables
	origin replication.Origin
	start  pglogrepl.LSN // the operator's --start-lsn
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	t.Parallel()
	env := testenv.New(t)
	return &fixture{
		Env: env, t: t, tables: sink.Tables{EventLog: "event_log", DeadLetter: "event_dead_letter"},
		origin: replication.Origin{Slot: env.Slot, Publication: env.Publication},
	}
}

// stream runs a streamer and returns how to stop it; it stops with the test.
func (f *fixture) stream() (stop func()) {
	f.t.Helper()
	p := pipeline.New(pipeline.Config{
		PostgresURL: f.PostgresURL, Origin: f.origin, StartLSN: f.start, SenderTimeout: 10 * time.Second,
		Tables: f.tables, Limits: batch.Limits{Rows: 20_000, Bytes: 4 << 20},
		FlushInterval: 20 * time.Millisecond, InsertTimeout: time.Minute, DrainTimeout: await.Limit,
	}, f.ClickHouse, f.log(), nil)
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	stop = func() {
		cancel()
		if !stopped {
			require.NoError(f.t, <-done)
		}
		stopped = true
	}
	f.t.Cleanup(stop)
	await.True(f.t, func() bool { return p.Progress().State() == pipeline.Streaming }, "the streamer streams")
	return stop
}

func (f *fixture) log() *slog.Logger {
	level := slog.LevelError
	if os.Getenv("LOG_LEVEL") == "debug" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(f.t.Output(), &slog.HandlerOptions{Level: level}))
}

func (f *fixture) config() Config {
	return Config{
		PostgresURL: f.PostgresURL, Origin: f.origin, ClickHouse: f.ClickHouse,
		Tables: f.tables, Limits: batch.Limits{Rows: 100, Bytes: 1 << 20}, InsertTimeout: time.Minute, Log: f.log(),
	}
}

// publish commits n events in one transaction and returns the end of the WAL behind it.
func (f *fixture) publish(kind string, n int) pglogrepl.LSN {
	f.t.Helper()
	f.exec(`INSERT INTO outbox (event_type, event_context, environment, published_by, trace_context)
		SELECT $1, json_build_object('n', n), 'Test', 'caller ' || n % 3, '00-' || md5(n::text) || '-00f067aa0ba902b7-01' FROM generate_series(1, $2::int) AS n`, kind, n)
	return f.walEnd()
}

func (f *fixture) exec(sql string, args ...any) {
	f.t.Helper()
	_, err := f.Pool.Exec(f.t.Context(), sql, args...)
	require.NoError(f.t, err, sql)
}

func (f *fixture) walEnd() pglogrepl.LSN {
	f.t.Helper()
	return f.lsn("SELECT pg_current_wal_lsn()::text")
}

func (f *fixture) lsn(query string, args ...any) pglogrepl.LSN {
	f.t.Helper()
	var text string
	require.NoError(f.t, f.Pool.QueryRow(f.t.Context(), query, args...).Scan(&text))
	lsn, err := pglogrepl.ParseLSN(text)
	require.NoError(f.t, err)
	return lsn
}

// confirmed waits until the streamer has confirmed lsn.
func (f *fixture) confirmed(lsn pglogrepl.LSN) {
	f.t.Helper()
	await.True(f.t, func() bool {
		return f.lsn("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", f.Slot) >= lsn
	}, "the streamer confirms %s", lsn)
}

// command runs a statement on ClickHouse and waits for its mutations.
func (f *fixture) command(sql string) {
	f.t.Helper()
	require.NoError(f.t, f.ClickHouse.Exec(f.t.Context(), sql), sql)
}

// remove deletes the rows of event_log for which condition holds, and returns how many.
func (f *fixture) remove(condition string) int {
	f.t.Helper()
	n := f.count("event_log", condition)
	f.command("ALTER TABLE event_log DELETE WHERE " + condition + " SETTINGS mutations_sync = 2")
	require.Zero(f.t, f.count("event_log", condition))
	return n
}

func (f *fixture) count(table, condition string) int {
	f.t.Helper()
	var n uint64
	require.NoError(f.t, f.ClickHouse.QueryRow(f.t.Context(), fmt.Sprintf("SELECT count() FROM %s WHERE %s", table, condition)).Scan(&n))
	return int(n)
}

// rows is every row of a table without the columns of its ingestion.
func (f *fixture) rows(table string) []string {
	f.t.Helper()
	var rows []string
	err := f.ClickHouse.QueryRow(f.t.Context(), `SELECT arraySort(groupArray(toString((event_id, event_type, event_date_time, environment,
		event_context, metadata_version, trace_id, published_by, source, timeline, commit_lsn, commit_seq, commit_time)))) FROM `+table).Scan(&rows)
	require.NoError(f.t, err)
	return rows
}

// complete waits until event_log holds every event of the outbox, and demands that it is there once.
func (f *fixture) complete() {
	f.t.Helper()
	var want []string
	err := f.Pool.QueryRow(f.t.Context(), `SELECT coalesce(array_agg(e ORDER BY e COLLATE "C"), '{}')
		FROM (SELECT concat_ws(' ', id, published_by, substr(trace_context, 4, 32)) AS e FROM outbox) AS o`).Scan(&want)
	require.NoError(f.t, err)
	f.confirmed(f.walEnd())
	var have []string
	err = f.ClickHouse.QueryRow(f.t.Context(), "SELECT arraySort(groupArray(trimRight(concatWithSeparator(' ', toString(event_id), published_by, trace_id)))) FROM event_log").Scan(&have)
	require.NoError(f.t, err)
	require.Equal(f.t, want, have, "the events of the outbox and those of event_log")
	require.Equal(f.t, len(want), f.count("(SELECT DISTINCT source, commit_lsn, commit_seq FROM event_log)", "true"), "positions")
}

func (f *fixture) bookmarks() *Bookmarks {
	f.t.Helper()
	b, err := OpenBookmarks(f.t.Context(), f.PostgresURL, f.Slot)
	require.NoError(f.t, err)
	f.t.Cleanup(b.Close)
	return b
}

func (f *fixture) bookmark(name string) Bookmark {
	f.t.Helper()
	m, err := f.bookmarks().Add(f.t.Context(), name)
	require.NoError(f.t, err)
	return m
}

// load publishes 20 events 20 times a second until the returned function is called.
func (f *fixture) load() (stop func()) {
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() {
		var err error
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil && err == nil {
			<-pace.C
			_, err = f.Pool.Exec(context.WithoutCancel(ctx), `INSERT INTO outbox (event_type, event_context)
				SELECT 'load', json_build_object('n', n) FROM generate_series(1, 20) AS n`)
		}
		done <- err
	}()
	return func() {
		cancel()
		require.NoError(f.t, <-done)
	}
}
