package chserver_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

func TestExceptionsKeepTheirCodes(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, func(o *clickhouse.Options) { o.MaxOpenConns = 1 })
	for sql, code := range map[string]int32{
		"SELECT * FROM nothing_here":                           60,
		"INSERT INTO nothing_here VALUES (1)":                  60,
		"SELEC 1":                                              62,
		"SELECT 1 FROM (":                                      62,
		"SELECT nothing_here":                                  47,
		"CREATE TABLE nodb.t (a UInt8) ENGINE Memory":          81,
		"SELECT 1 SETTINGS no_such_setting = 1":                115,
		"SELECT throwIf(number = 100000) FROM numbers(200000)": 395,
		"SELECT groupArray(number) FROM numbers(1000000) SETTINGS max_memory_usage = 1000000":        241,
		"SELECT sleepEachRow(1) FROM numbers(3) SETTINGS max_execution_time = 1, max_block_size = 1": 159,
	} {
		requireCode(t, conn.Exec(t.Context(), sql), code)
	}
	require.NoError(t, conn.Exec(t.Context(), "SELECT 1"), "the connection goes on after an exception")
}

func TestPrepareBatchErrors(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, func(o *clickhouse.Options) { o.MaxOpenConns = 1 })
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE t (a UInt8, CONSTRAINT small CHECK a < 10) ENGINE MergeTree ORDER BY a"))
	_, err := conn.PrepareBatch(t.Context(), "INSERT INTO nothing_here")
	requireCode(t, err, 60)
	_, err = conn.PrepareBatch(t.Context(), "INSERT INTO t (a, b)")
	requireCode(t, err, 16)

	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO t")
	require.NoError(t, err)
	require.NoError(t, batch.Append(uint8(1)))
	require.NoError(t, batch.Append(uint8(11)))
	requireCode(t, batch.Send(), 469)
	require.Zero(t, count(t, conn, "t"))
}

func TestSettings(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, func(o *clickhouse.Options) {
		o.MaxOpenConns = 1
		o.Settings = clickhouse.Settings{"max_threads": 1}
	})
	value := func(settings clickhouse.Settings, name string) (v string, err error) {
		ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(settings))
		err = conn.QueryRow(ctx, "SELECT toString(getSetting($1))", name).Scan(&v)
		return v, err
	}
	initial, err := value(nil, "max_block_size")
	require.NoError(t, err)
	for _, want := range []string{"1000", "2000", initial} {
		settings := clickhouse.Settings{"max_block_size": want}
		if want == initial {
			settings = nil // back to the default once the query does not ask for it
		}
		got, err := value(settings, "max_block_size")
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	got, err := value(clickhouse.Settings{"async_insert": false, "insert_deduplication_token": `a'b\c`}, "insert_deduplication_token")
	require.NoError(t, err)
	require.Equal(t, `a'b\c`, got)
	_, err = value(clickhouse.Settings{"no_such_setting": 1}, "max_threads")
	requireCode(t, err, 115)
	_, err = value(clickhouse.Settings{"readonly": 1}, "max_threads")
	require.NoError(t, err)
	got, err = value(nil, "max_threads")
	require.NoError(t, err)
	require.Equal(t, "1", got)
}

func TestQueryParameters(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	nasty := "it's \\ a\ttab\nline \x00 {x:String} é"
	var text string
	var number int64
	var when time.Time
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	err := conn.QueryRow(t.Context(), "SELECT {x:String}, {n:Int64}, {d:DateTime64(6, 'UTC')}",
		clickhouse.Named("x", nasty), clickhouse.Named("n", int64(-5)), clickhouse.Named("d", at)).Scan(&text, &number, &when)
	require.NoError(t, err)
	require.Equal(t, nasty, text)
	require.Equal(t, int64(-5), number)
	require.Equal(t, at, when)

	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE p (s String) ENGINE Memory"))
	ctx := clickhouse.Context(t.Context(), clickhouse.WithParameters(clickhouse.Parameters{"s": "given", "t": "p"}))
	require.NoError(t, conn.Exec(ctx, "INSERT INTO p SELECT {s:String}"))
	require.NoError(t, conn.QueryRow(ctx, "SELECT s FROM {t:Identifier} WHERE s = {s:String}").Scan(&text))
	require.Equal(t, "given", text)
}

func TestEmptyResultsHaveColumns(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	for sql, columns := range map[string][]string{
		"SELECT 1 AS a, 'x' AS b WHERE 0":                                 {"a", "b"},
		"WITH 1 AS a SELECT a, a + 1 AS b WHERE 0;  ":                     {"a", "b"},
		"SELECT 1 AS a WHERE 0 -- comment":                                {"a"},
		"SELECT 1 AS a WHERE 0 FORMAT TabSeparated":                       {"a"},
		"(SELECT 1 AS a WHERE 0)":                                         {"a"},
		"SELECT 1 AS format WHERE 0 FORMAT JSON SETTINGS max_threads = 1": {"format"},
		"SHOW TABLES": {"name"},
	} {
		rows, err := conn.Query(t.Context(), sql)
		require.NoError(t, err, sql)
		require.Equal(t, columns, rows.Columns(), sql)
		require.False(t, rows.Next(), sql)
		require.NoError(t, rows.Err(), sql)
	}
}

func TestStatementsThatAreNotSelect(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE a (x UInt8) ENGINE MergeTree ORDER BY x"))
	require.NoError(t, conn.Exec(t.Context(), "INSERT INTO a SELECT number FROM numbers(10)"))
	require.NoError(t, conn.Exec(t.Context(), "INSERT INTO a (x) VALUES (1), (2); -- inline"))
	require.NoError(t, conn.Exec(t.Context(), "ALTER TABLE a DELETE WHERE x = 9 SETTINGS mutations_sync = 1"))
	require.Equal(t, uint64(11), count(t, conn, "a"))
	var name string
	require.NoError(t, conn.QueryRow(t.Context(), "SHOW TABLES").Scan(&name))
	require.Equal(t, "a", name)
	var exists uint8
	require.NoError(t, conn.QueryRow(t.Context(), "EXISTS TABLE a").Scan(&exists))
	require.Equal(t, uint8(1), exists)
	require.NoError(t, conn.QueryRow(t.Context(), "EXPLAIN SYNTAX SELECT 1").Scan(&name))
}

func TestConnectionsHaveTheirOwnDatabase(t *testing.T) {
	t.Parallel()
	one, two := testDatabase(t, nil), testDatabase(t, nil)
	require.NoError(t, one.Exec(t.Context(), "CREATE TABLE mine (a UInt8) ENGINE Memory"))
	requireCode(t, two.Exec(t.Context(), "SELECT * FROM mine"), 60)
	require.NoError(t, one.Exec(t.Context(), "SELECT * FROM mine"))

	nowhere := sharedServer(t).open(func(o *clickhouse.Options) { o.Auth.Database = "nowhere" })
	requireCode(t, nowhere.Ping(t.Context()), 81)
}

// Queries of different connections run at the same time.
func TestConnectionsRunConcurrently(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, func(o *clickhouse.Options) { o.MaxOpenConns = 12 })
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE c (worker UInt8, n UInt32) ENGINE MergeTree ORDER BY n"))
	slow := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		slow <- conn.Exec(ctx, "SELECT sleepEachRow(1) FROM numbers(600) SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 0")
	}()
	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			for i := range 10 {
				batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO c")
				if err == nil {
					_ = batch.Append(uint8(worker), uint32(i))
					err = batch.Send()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	require.Equal(t, uint64(80), count(t, conn, "c"))
	select {
	case err := <-slow:
		t.Fatal("the slow query should still run: ", err)
	default:
	}
	cancel()
	require.ErrorIs(t, <-slow, context.Canceled)
}

// A query whose client went away does not go on.
func TestQueryStopsWithItsClient(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	marker := fmt.Sprintf("abandoned_%d", time.Now().UnixNano())
	ctx, cancel := context.WithCancel(clickhouse.Context(t.Context(), clickhouse.WithQueryID(marker)))
	done := make(chan error, 1)
	go func() { done <- conn.Exec(ctx, "SELECT sleepEachRow(1) FROM numbers(600) SETTINGS max_block_size = 1") }()
	await.True(t, func() bool { return runningQueries(t, conn, marker) == 1 }, "the query runs")
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	await.True(t, func() bool { return runningQueries(t, conn, marker) == 0 }, "the query ends")
}
