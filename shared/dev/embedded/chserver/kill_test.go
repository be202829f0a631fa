package chserver_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

// An INSERT that waits for its rows when it is killed inserts nothing, is gone
// from the list at once, and fails as on a server when its rows are complete.
func TestKillInsertThatWaitsForRows(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE k (a UInt64) ENGINE MergeTree ORDER BY a"))
	id := uniqueID("pipeline") + "-1"
	batch, err := conn.PrepareBatch(clickhouse.Context(t.Context(), clickhouse.WithQueryID(id)), "INSERT INTO k")
	require.NoError(t, err)
	require.NoError(t, batch.Append(uint64(1)))
	require.NoError(t, batch.Flush())
	require.Equal(t, uint64(1), runningQueries(t, conn, id))

	killed := kill(t, conn, fmt.Sprintf("query_id LIKE '%s%%' SYNC", id[:len(id)-1]))
	require.Equal(t, []killRow{{"finished", id, "default", "INSERT INTO k FORMAT Native"}}, killed)
	require.Zero(t, runningQueries(t, conn, id))
	requireCode(t, batch.Send(), 394)
	require.Zero(t, count(t, conn, "k"))
}

func TestKillSelect(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	for _, mode := range []string{"SYNC", "ASYNC"} {
		id := uniqueID("select")
		ended := make(chan error, 1)
		go func() {
			ctx := clickhouse.Context(context.Background(), clickhouse.WithQueryID(id))
			ended <- conn.Exec(ctx, "SELECT sleepEachRow(0.1) FROM numbers(6000) SETTINGS max_block_size = 1")
		}()
		await.True(t, func() bool { return runningQueries(t, conn, id) == 1 }, "the query runs")
		require.Len(t, kill(t, conn, "query_id = '"+id+"' "+mode), 1)
		if mode == "SYNC" {
			require.Zero(t, runningQueries(t, conn, id))
		}
		select {
		case err := <-ended:
			requireCode(t, err, 394)
		case <-time.After(10 * time.Second):
			t.Fatal("the query goes on")
		}
	}
}

// An INSERT in execution is waited for, and its rows are there.
func TestKillWaitsForRunningInsert(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE w (a UInt64, b UInt8 MATERIALIZED sleepEachRow(0.2)) ENGINE MergeTree ORDER BY a"))
	id := uniqueID("running")
	sent := make(chan error, 1)
	go func() {
		sent <- insertNumber(clickhouse.Context(context.Background(), clickhouse.WithQueryID(id)), conn, "w", 1)
	}()
	await.True(t, func() bool { return runningQueries(t, conn, id) == 1 }, "the query runs")
	kill(t, conn, "query_id = '"+id+"' SYNC")
	require.Zero(t, runningQueries(t, conn, id))
	if err := <-sent; err != nil { // killed before its rows were complete
		requireCode(t, err, 394)
		require.Zero(t, count(t, conn, "w"))
		return
	}
	require.Equal(t, uint64(1), count(t, conn, "w"))
}

func TestKillNothing(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "KILL QUERY WHERE query_id LIKE 'missing-%' SYNC"))
	requireCode(t, conn.Exec(t.Context(), "KILL QUERY WHERE no_such_column = 1"), 47)
	id := uniqueID("spared")
	batch, err := conn.PrepareBatch(clickhouse.Context(t.Context(), clickhouse.WithQueryID(id)), "INSERT INTO FUNCTION null('a UInt8')")
	require.NoError(t, err)
	require.Len(t, kill(t, conn, "query_id = '"+id+"' TEST"), 1)
	require.Equal(t, uint64(1), runningQueries(t, conn, id))
	require.NoError(t, batch.Send())
}

func TestSameQueryIDIsRefused(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE s (a UInt64) ENGINE MergeTree ORDER BY a"))
	ctx := clickhouse.Context(t.Context(), clickhouse.WithQueryID(uniqueID("same")))
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO s")
	require.NoError(t, err)
	requireCode(t, insertNumber(ctx, conn, "s", 1), 216)
	require.NoError(t, batch.Append(uint64(2)))
	require.NoError(t, batch.Send())
	require.NoError(t, insertNumber(ctx, conn, "s", 3), "the id is free again")
	require.Equal(t, uint64(2), count(t, conn, "s"))
}

func TestProcessesShowsQueries(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	id := uniqueID("self") + `'\`
	ctx := clickhouse.Context(t.Context(), clickhouse.WithQueryID(id))
	var user, query, name string
	var elapsed float64
	require.NoError(t, conn.QueryRow(ctx, "SELECT p.user, p.query, p.elapsed, 'system.processes' FROM `system`.processes AS p WHERE query_id = $1", id).
		Scan(&user, &query, &elapsed, &name))
	require.Equal(t, "default", user)
	require.Contains(t, query, "SELECT p.user")
	require.Equal(t, "system.processes", name)
}

type killRow struct {
	Status string `ch:"kill_status"`
	ID     string `ch:"query_id"`
	User   string `ch:"user"`
	Query  string `ch:"query"`
}

func kill(t *testing.T, conn driver.Conn, where string) []killRow {
	t.Helper()
	var rows []killRow
	require.NoError(t, conn.Select(t.Context(), &rows, "KILL QUERY WHERE "+where))
	return rows
}

func runningQueries(t *testing.T, conn driver.Conn, prefix string) (n uint64) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM system.processes WHERE query_id LIKE $1", prefix+"%").Scan(&n))
	return n
}
