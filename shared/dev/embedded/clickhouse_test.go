package embedded_test

import (
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

func run(t *testing.T, c *embedded.ClickHouse, sql string) {
	t.Helper()
	conn, err := clickhouse.Open(t.Context(), c.Config("default"))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.Exec(t.Context(), sql))
}

func count(t *testing.T, c *embedded.ClickHouse, table string) int {
	t.Helper()
	conn, err := clickhouse.Open(t.Context(), c.Config("default"))
	require.NoError(t, err)
	defer conn.Close()
	var rows uint64
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM "+table).Scan(&rows))
	return int(rows)
}

func TestClickHouseKeepsItsDataHoweverItEnds(t *testing.T) {
	t.Parallel()
	c := testenv.StartClickHouse(t, embedded.ClickHouseOptions{})
	run(t, c, "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS fsync_after_insert = 1")
	port := c.Port()
	for i, end := range []func() error{func() error { return c.Stop(t.Context()) }, c.Kill} {
		run(t, c, "INSERT INTO kept VALUES (1)")
		require.NoError(t, end())
		require.Nil(t, embedded.FindClickHouse(c.DataDir()))
		require.NoError(t, c.Start(t.Context()))
		assert.Equal(t, i+1, count(t, c, "kept"))
	}
	assert.Equal(t, port, c.Port())
}

func TestClickHouseIsAdoptedOrRestarted(t *testing.T) {
	t.Parallel()
	c := testenv.StartClickHouse(t, embedded.ClickHouseOptions{})
	same, err := embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{DataDir: c.DataDir()})
	require.NoError(t, err)
	assert.Equal(t, c.PID(), same.PID())
	assert.Equal(t, c.Port(), same.Port())

	free := freePort(t)
	other, err := embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{DataDir: c.DataDir(), Port: free})
	require.NoError(t, err)
	assert.NotEqual(t, c.PID(), other.PID())
	assert.Equal(t, free, other.Port())
	assert.Zero(t, count(t, other, "system.one WHERE 0"))
}

// The listeners of replicas keep their ports, and what is inserted through one is
// visible through the other.
func TestReplicasKeepTheirPorts(t *testing.T) {
	t.Parallel()
	c := testenv.StartClickHouse(t, embedded.ClickHouseOptions{Replicas: 1})
	before := c.ReplicaConfigs("default")
	require.Len(t, before, 2)
	run(t, c, "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS fsync_after_insert = 1")
	run(t, c, "INSERT INTO kept VALUES (1)")
	require.NoError(t, c.Kill())
	require.NoError(t, c.Start(t.Context()))
	assert.Equal(t, before, c.ReplicaConfigs("default"))
	conn, err := clickhouse.Open(t.Context(), before[1])
	require.NoError(t, err)
	defer conn.Close()
	var rows uint64
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM kept").Scan(&rows))
	assert.EqualValues(t, 1, rows)
	found := embedded.FindClickHouse(c.DataDir())
	require.NotNil(t, found)
	assert.Equal(t, before, found.ReplicaConfigs("default"))
}

func TestFrozenClickHouseAnswersAgain(t *testing.T) {
	t.Parallel()
	c := testenv.StartClickHouse(t, embedded.ClickHouseOptions{})
	require.NoError(t, c.Pause())
	require.NoError(t, c.Resume())
	assert.Equal(t, 1, count(t, c, "system.one"))
	require.NoError(t, c.Pause())
	require.NoError(t, c.Stop(t.Context()), "a frozen server can be stopped")
}

func TestClickHouseSaysWhoUsesItsPort(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", embedded.Host+":0")
	require.NoError(t, err)
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	_, err = embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{DataDir: t.TempDir() + "/data", Port: port})
	require.ErrorContains(t, err, "port "+strconv.Itoa(port)+" for ClickHouse is in use by embedded.test")
	require.ErrorContains(t, err, "set EMBEDDED_CLICKHOUSE_PORT to a free port")
}

// freePort returns a port that is free for now.
func freePort(t *testing.T) int {
	t.Helper()
	port, err := embedded.FreePort()
	require.NoError(t, err)
	return port
}
