package e2e

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// awaitRows waits until event_log has n rows, and fails if it has more.
func awaitRows(t testing.TB, env *testenv.Env, n int) {
	t.Helper()
	var have int
	await.True(t, func() bool { have = countRows(t, env); return have >= n }, "fewer than %d rows arrive", n)
	require.Equal(t, n, have, "rows in event_log")
}

func countRows(t testing.TB, env *testenv.Env) int {
	t.Helper()
	return count(t, env, "count()", "")
}

// count evaluates an aggregate over event_log. While ClickHouse does not answer it is -1.
func count(t testing.TB, env *testenv.Env, aggregate, where string) int {
	t.Helper()
	query := fmt.Sprintf("SELECT toInt64(%s) FROM %s %s", aggregate, env.ClickHouseConfig.EventLogTable, where)
	var n int64
	if err := env.ClickHouse.QueryRow(t.Context(), query).Scan(&n); err != nil {
		return -1
	}
	return int(n)
}

// delivered waits until every row of the outbox is in event_log, and then demands
// that it is there once, and nothing else is. It returns the number of rows.
func delivered(t testing.TB, env *testenv.Env) int {
	t.Helper()
	want := outboxIDs(t, env)
	have := 0
	await.True(t, func() bool { have = count(t, env, "uniqExact(event_id)", ""); return have >= len(want) },
		"event_log has fewer than the %d events of the outbox", len(want))
	exactly(t, env, want)
	return len(want)
}

// exactly demands that event_log holds these events once each, and no others.
func exactly(t testing.TB, env *testenv.Env, want []string) {
	t.Helper()
	require.Equal(t, len(want), countRows(t, env), "rows in event_log: some are duplicated or were never committed")
	require.Equal(t, want, logIDs(t, env), "the events of the outbox and those of event_log")
	require.Equal(t, len(want), count(t, env, "uniqExact(source, commit_lsn, commit_seq)", ""), "positions")
}

func outboxIDs(t testing.TB, env *testenv.Env) []string {
	t.Helper()
	var ids []string
	err := env.Pool.QueryRow(t.Context(), `SELECT coalesce(array_agg(id::text ORDER BY id::text COLLATE "C"), '{}') FROM outbox`).Scan(&ids)
	require.NoError(t, err)
	return ids
}

func logIDs(t testing.TB, env *testenv.Env) []string {
	t.Helper()
	var ids []string
	query := "SELECT arraySort(groupArray(toString(event_id))) FROM " + env.ClickHouseConfig.EventLogTable
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), query).Scan(&ids))
	return ids
}

// publish commits n events in one transaction.
func publish(t testing.TB, env *testenv.Env, n int) {
	t.Helper()
	execute(t, env, `INSERT INTO outbox (event_type, event_context)
		SELECT 'numbered', json_build_object('n', n) FROM generate_series(1, $1::int) AS n`, n)
}

// trickle commits n events in n transactions, in order.
func trickle(t testing.TB, env *testenv.Env, n int) {
	t.Helper()
	for i := range n {
		execute(t, env, "INSERT INTO outbox (event_type, event_context) VALUES ('numbered', json_build_object('n', $1::int))", i)
	}
}

func execute(t testing.TB, env *testenv.Env, sql string, args ...any) {
	t.Helper()
	_, err := env.Pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err, sql)
}

// command runs a statement on ClickHouse; LOG stands for the event log.
func command(t testing.TB, env *testenv.Env, sql string) {
	t.Helper()
	sql = strings.ReplaceAll(sql, "LOG", env.ClickHouseConfig.EventLogTable)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), sql), sql)
}

// hold makes ClickHouse refuse every insert into the event log, until release.
// It answers with an error that passes.
func hold(t testing.TB, env *testenv.Env) {
	t.Helper()
	command(t, env, "ALTER TABLE LOG MODIFY SETTING table_readonly = 1")
}

func release(t testing.TB, env *testenv.Env) {
	t.Helper()
	command(t, env, "ALTER TABLE LOG MODIFY SETTING table_readonly = 0")
}

// holdAfter makes ClickHouse take n more inserts and refuse those behind them,
// until releaseParts.
func holdAfter(t testing.TB, env *testenv.Env, n int) {
	t.Helper()
	var parts uint64
	query := "SELECT count() FROM system.parts WHERE active AND database = $1 AND table = $2"
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), query, env.ClickHouseConfig.Database, env.ClickHouseConfig.EventLogTable).Scan(&parts))
	command(t, env, "SYSTEM STOP MERGES LOG")
	command(t, env, fmt.Sprintf("ALTER TABLE LOG MODIFY SETTING parts_to_throw_insert = %[1]d, parts_to_delay_insert = %[1]d", int(parts)+n))
}

func releaseParts(t testing.TB, env *testenv.Env) {
	t.Helper()
	command(t, env, "ALTER TABLE LOG RESET SETTING parts_to_throw_insert, parts_to_delay_insert")
	command(t, env, "SYSTEM START MERGES LOG")
}

// slotLSN reads a position of the slot; 0 while it has none.
func slotLSN(t testing.TB, env *testenv.Env, column string) pglogrepl.LSN {
	t.Helper()
	return lsn(t, env, "SELECT coalesce("+column+", '0/0')::text FROM pg_replication_slots WHERE slot_name = $1", env.Slot)
}

func walEnd(t testing.TB, env *testenv.Env) pglogrepl.LSN {
	t.Helper()
	return lsn(t, env, "SELECT pg_current_wal_flush_lsn()::text")
}

func lsn(t testing.TB, env *testenv.Env, query string, args ...any) pglogrepl.LSN {
	t.Helper()
	var text string
	require.NoError(t, env.Pool.QueryRow(t.Context(), query, args...).Scan(&text))
	parsed, err := pglogrepl.ParseLSN(text)
	require.NoError(t, err)
	return parsed
}

// pending returns how many rows the slot would still deliver after a crash now.
func pending(t testing.TB, env *testenv.Env) int {
	t.Helper()
	awaitFree(t, env)
	var n int
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', $2) WHERE get_byte(data, 0) = ascii('I')`, env.Slot, env.Publication).Scan(&n))
	return n
}

// awaitFree waits until the server has noticed that the slot's last streamer is gone.
func awaitFree(t testing.TB, env *testenv.Env) {
	t.Helper()
	await.True(t, func() bool { return walsender(t, env) == 0 }, "the slot is still in use")
}

// walsender is the process that serves the slot, 0 if none does.
func walsender(t testing.TB, env *testenv.Env) int {
	t.Helper()
	var pid int
	query := "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = $1"
	require.NoError(t, env.Pool.QueryRow(t.Context(), query, env.Slot).Scan(&pid))
	return pid
}

// logbook keeps log lines, and shows them when the test fails.
type logbook struct {
	mu    *sync.Mutex
	lines *strings.Builder
	slog.Handler
}

func newLogbook(t testing.TB) *logbook {
	t.Helper()
	b := &logbook{mu: &sync.Mutex{}, lines: &strings.Builder{}}
	b.Handler = slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("log of the streamer:\n" + b.text())
		}
	})
	return b
}

// Write makes b the destination of its own handler.
func (b *logbook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines.Write(p)
}

func (b *logbook) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines.String()
}
