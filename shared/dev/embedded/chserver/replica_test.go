package chserver_test

import (
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

// Two listeners on one engine look like two replicas.
func TestReplicas(t *testing.T) {
	t.Parallel()
	s := startInstance(t, &instance{replica: freeAddr(t)})
	one := s.open(nil)
	two := s.open(func(o *clickhouse.Options) { o.Addr = []string{s.replica} })
	ctx := t.Context()
	exec := func(conn clickhouse.Conn, sql string) {
		t.Helper()
		require.NoError(t, conn.Exec(ctx, sql), sql)
	}
	exec(one, "CREATE TABLE t (a UInt64, PROJECTION last (SELECT max(a))) ENGINE MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100")
	exec(one, "CREATE TABLE target (a UInt64) ENGINE MergeTree ORDER BY a")
	exec(one, "CREATE MATERIALIZED VIEW v TO target AS SELECT a FROM t")
	last := func(conn clickhouse.Conn) (n uint64) {
		t.Helper()
		require.NoError(t, conn.QueryRow(ctx, "SELECT max(a) FROM t").Scan(&n))
		return n
	}
	exec(one, "INSERT INTO t VALUES (1)")
	assert.EqualValues(t, 1, last(two), "no lag by default")

	exec(two, "SYSTEM STOP FETCHES")
	batch, err := one.PrepareBatch(ctx, "INSERT INTO t")
	require.NoError(t, err)
	require.NoError(t, batch.Append(uint64(2)))
	require.NoError(t, batch.Send())
	exec(one, "INSERT INTO t SELECT 3")
	assert.EqualValues(t, 3, last(one))
	assert.EqualValues(t, 1, last(two))
	assert.EqualValues(t, 1, count(t, two, "t"))
	assert.EqualValues(t, 1, count(t, two, "target"), "what a view wrote has not arrived either")
	exec(two, "INSERT INTO t VALUES (4)")
	assert.EqualValues(t, 2, count(t, two, "t"), "its own insert is visible")
	assert.EqualValues(t, 4, count(t, one, "t"))
	sequential := clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"select_sequential_consistency": 1}))
	requireCode(t, two.QueryRow(sequential, "SELECT count() FROM t").Err(), 289)

	exec(two, "SYSTEM START FETCHES t")
	assert.EqualValues(t, 4, count(t, two, "t"))
	assert.EqualValues(t, 4, count(t, two, "target"))

	var engine string
	require.NoError(t, two.QueryRow(ctx, "SELECT engine FROM system.tables WHERE database = 'default' AND name = 't'").Scan(&engine))
	assert.Equal(t, "SharedMergeTree", engine)
}

// Each replica lists and kills its own queries.
func TestReplicasHaveProcessListsOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := startInstance(t, &instance{replica: freeAddr(t)})
	one := s.open(nil)
	two := s.open(func(o *clickhouse.Options) { o.Addr = []string{s.replica} })
	require.NoError(t, one.Exec(t.Context(), "CREATE TABLE t (a UInt64) ENGINE MergeTree ORDER BY a"))
	ctx := clickhouse.Context(t.Context(), clickhouse.WithQueryID("an-insert"))
	batch, err := one.PrepareBatch(ctx, "INSERT INTO t")
	require.NoError(t, err)
	const mine = "system.processes WHERE query_id = 'an-insert'"
	assert.EqualValues(t, 1, count(t, one, mine))
	assert.Zero(t, count(t, two, mine))
	require.NoError(t, two.Exec(t.Context(), "KILL QUERY WHERE query_id = 'an-insert' SYNC"))
	assert.EqualValues(t, 1, count(t, one, mine))
	require.NoError(t, one.Exec(t.Context(), "KILL QUERY WHERE query_id = 'an-insert' SYNC"))
	require.NoError(t, batch.Append(uint64(1)))
	require.Error(t, batch.Send())
	assert.Zero(t, count(t, two, "t"))
}

// With a lag, an insert is visible through the other listener a little later, or at
// once with sequential consistency.
func TestReplicaLag(t *testing.T) {
	t.Parallel()
	s := startInstance(t, &instance{replica: freeAddr(t), lag: time.Second})
	one := s.open(nil)
	two := s.open(func(o *clickhouse.Options) { o.Addr = []string{s.replica} })
	require.NoError(t, one.Exec(t.Context(), "CREATE TABLE t (a UInt64) ENGINE MergeTree ORDER BY a"))
	require.NoError(t, one.Exec(t.Context(), "INSERT INTO t VALUES (1)"))
	await.True(t, func() bool { return count(t, two, "t") == 1 }, "the row is replicated")
	require.NoError(t, two.Exec(t.Context(), "INSERT INTO t VALUES (2)"))
	sequential := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"select_sequential_consistency": 1}))
	var rows uint64
	require.NoError(t, one.QueryRow(sequential, "SELECT count() FROM t").Scan(&rows))
	assert.EqualValues(t, 2, rows)
}
