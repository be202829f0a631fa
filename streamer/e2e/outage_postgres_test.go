package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/streamer/pipeline"
)

// After a fast shutdown, an immediate one and a crash, the server offers again
// what was confirmed to it: the event log knows better.
func TestPostgresRestarts(t *testing.T) {
	t.Parallel()
	env, engine := ownPostgres(t, nil)
	s := start(t, env)
	for _, end := range []func() error{
		func() error { return engine.Stop(t.Context()) },
		func() error { return engine.StopImmediate(t.Context()) },
		engine.Kill,
	} {
		publish(t, env, 500)
		trickle(t, env, 20)
		delivered(t, env)
		trickle(t, env, 20)
		sessions := s.seen.sessions.Load()
		require.NoError(t, end())
		await.True(t, func() bool { return s.seen.sessions.Load() > sessions }, "the restart is not noticed")
		require.NoError(t, engine.Start(t.Context()))
		env.Pool.Reset()
		delivered(t, env)
	}
	trickle(t, env, 20)
	delivered(t, env)
}

// A fast shutdown waits for the walsender, which waits for us: when ClickHouse is
// away there is nothing to wait for, and we must not keep the server from its end.
func TestAFastShutdownOfPostgresIsNotHeldUp(t *testing.T) {
	t.Parallel()
	env, engine := ownPostgres(t, nil)
	n, through := toClickHouse(t, env)
	s := start(t, env, through)
	n.cut()
	publish(t, env, 5000)
	s.await(pipeline.Retrying)
	var dataDir string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SHOW data_directory").Scan(&dataDir))
	require.NoError(t, engine.Stop(t.Context()))
	state := controlState(t, dataDir)
	require.NoError(t, engine.Start(t.Context()))
	require.Equal(t, "shut down", state, "the server was stopped by force")
	env.Pool.Reset()
	n.restore()
	delivered(t, env)
}

func TestBackendsAreTerminated(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env)
	stop := produce(t, env, 2)
	for _, which := range []string{
		"pid IN (SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1)",
		"application_name LIKE 'diehard-streamer-%' AND backend_type = 'client backend' AND datname = $1", // slot and database have one name
		"application_name LIKE 'diehard-streamer-%' AND datname = $1",
	} {
		sessions := s.seen.sessions.Load()
		var n int
		require.NoError(t, env.Pool.QueryRow(t.Context(),
			"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE "+which, env.Slot).Scan(&n))
		require.Positive(t, n)
		await.True(t, func() bool { return s.seen.sessions.Load() > sessions }, "the end of a backend is not noticed")
		s.await(pipeline.Streaming)
		rows := countRows(t, env)
		await.True(t, func() bool { return countRows(t, env) > rows+100 }, "no rows in the new session")
	}
	stop()
	delivered(t, env)
	producersInOrder(t, env)
	assert.Zero(t, s.seen.deadLetters.Load())
}

// A walsender that works through a large transaction of which nothing is sent
// answers late: that is no reason to give the session up, and to begin anew for ever.
func TestALargeTransactionOfAnotherTable(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	execute(t, env, "CREATE TABLE noise (n int)")
	s := start(t, env, func(c *setup) { c.SenderTimeout = 3 * time.Second })
	execute(t, env, "INSERT INTO noise SELECT n FROM generate_series(1, 2000000) AS n")
	end := walEnd(t, env)
	await.True(t, func() bool { return s.pipeline.Progress().Confirmed() >= end }, "the position does not get past the transaction")
	publish(t, env, 5)
	delivered(t, env)
}
