package e2e

import (
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// ClickHouse as two nodes that look like replicas from outside: each has a process list of its own,
// and shows late what was written through the other one.

// never is a lag that does not pass by itself: only a consistent read sees what the other node wrote.
const never = time.Hour

// twoNodes is an environment whose ClickHouse looks like two replicas, and how to connect to the
// one that env does not use. The test's own reads are consistent.
func twoNodes(t testing.TB, lag time.Duration) (env *testenv.Env, other clickhouse.Config) {
	t.Helper()
	one, engine := *newEnv(t), testenv.StartClickHouse(t, embedded.ClickHouseOptions{Replicas: 1, ReplicaLag: lag})
	both := engine.ReplicaConfigs("default")
	require.NoError(t, migrations.UpClickHouse(t.Context(), both[0], slog.New(slog.DiscardHandler)))
	one.ClickHouseConfig = both[1]
	options, err := clickhouse.Options(both[0])
	require.NoError(t, err)
	options.Settings["select_sequential_consistency"] = 1
	one.ClickHouse, err = clickhouse.OpenOptions(options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = one.ClickHouse.Close() })
	return &one, both[0]
}

// throughBoth has a streamer use both nodes, each through a network: other first, where the test looks at
// what runs, then that of env.
func throughBoth(t testing.TB, env *testenv.Env, other clickhouse.Config) (first, second *network, through func(*setup)) {
	t.Helper()
	first, second = newNetwork(t, other.Address()), newNetwork(t, env.ClickHouseConfig.Address())
	return first, second, func(c *setup) { c.ClickHouse.Host = first.proxy.Listen + "," + second.proxy.Listen }
}

// A streamer is frozen with its insert registered at one node, and its successor sends the same block
// to the other one: each row is there once.
func TestAFrozenInsertAndItsRepetitionOnAnotherNodeAreOne(t *testing.T) {
	t.Parallel()
	env, other := twoNodes(t, never)
	first := runUntil(t, env, "intent-written", 1, "REPLICATION_SENDER_TIMEOUT=2s")
	first.says("streaming")
	publish(t, env, 10)
	first.frozen()
	second := start(t, env, func(c *setup) { c.SenderTimeout, c.ClickHouse = 2*time.Second, other })
	require.Equal(t, 10, delivered(t, env))
	first.signal(syscall.SIGCONT)
	first.says("standby: another streamer holds the slot")
	publish(t, env, 10)
	require.Equal(t, 20, delivered(t, env))
	second.stop()
	publish(t, env, 10)
	require.Equal(t, 30, delivered(t, env))
}

// The rows are in at one node and its answer is lost. The next try is on the other one, which does
// not show them by itself.
func TestTheAnswerIsLostAndTheNextTryIsOnTheOtherNode(t *testing.T) {
	t.Parallel()
	env, other := twoNodes(t, never)
	first, _, through := throughBoth(t, env, other)
	s := start(t, env, through, func(c *setup) { c.InsertTimeout = 3 * time.Second })
	slow(t, env)
	publish(t, env, 6)
	await.True(t, func() bool { return running(t, env, 0.2) > 0 }, "the first node is not asked")
	first.silence("downstream")
	await.True(t, func() bool { return s.seen.retries.Load() > 0 }, "the silence is not noticed")
	quick(t, env)
	awaitRows(t, env, 6)
	publish(t, env, 5) // the first node is still silent
	require.Equal(t, 11, delivered(t, env))
	confirmedPast(t, env)
	assert.NotContains(t, s.log.text(), "its rows are missing", "a read that is not consistent")
	assert.Zero(t, s.seen.sessions.Load())
}

// The node in use dies under load, and later the one that took its place.
func TestTheNodeInUseDies(t *testing.T) {
	t.Parallel()
	env, other := twoNodes(t, 50*time.Millisecond)
	first, second, through := throughBoth(t, env, other)
	s := start(t, env, through)
	sender := walsender(t, env)
	stop := produce(t, env, 2)
	goesOn := func(with string) {
		t.Helper()
		rows := countRows(t, env)
		await.True(t, func() bool { return countRows(t, env) > rows+50 }, "no rows arrive %s", with)
	}
	goesOn("through the first node")
	for _, used := range []*network{first, second} {
		used.cut()
		goesOn("through the other node")
		used.restore()
	}
	stop()
	delivered(t, env)
	producersInOrder(t, env)
	assert.Equal(t, sender, walsender(t, env))
	assert.Zero(t, s.seen.sessions.Load())
}
