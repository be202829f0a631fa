package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/pipeline"
	"diehard/streamer/sink"
)

func TestAStandbyWaitsAndTakesOverAfterADeath(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := run(t, env, "streamer")
	first.says("streaming")
	stop := produce(t, env, 2)
	second := launch(t, env)
	second.await(pipeline.Standby)
	assert.Contains(t, second.log.text(), "standby: another streamer holds the slot")
	rows := countRows(t, env)
	await.True(t, func() bool { return countRows(t, env) > rows+100 }, "the first does not go on")
	assert.Equal(t, pipeline.Standby, second.pipeline.Progress().State())

	first.kill()
	second.await(pipeline.Streaming)
	rows = countRows(t, env)
	await.True(t, func() bool { return countRows(t, env) > rows+100 }, "the second does not go on")
	stop()
	delivered(t, env)
	producersInOrder(t, env)
}

func TestAStandbyTakesOverAfterAStop(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := start(t, env)
	second := launch(t, env)
	second.await(pipeline.Standby)
	publish(t, env, 10)
	delivered(t, env)
	first.stop()
	second.await(pipeline.Streaming)
	publish(t, env, 10)
	delivered(t, env)
}

// The first is frozen with rows in its hands, is replaced, and wakes up: what it
// still wants to write must not be written, and it becomes the standby.
func TestAFrozenStreamerIsReplacedAndWakesUpAsStandby(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := run(t, env, "streamer", "REPLICATION_SENDER_TIMEOUT=2s")
	first.says("streaming")
	stop := produce(t, env, 4)
	await.True(t, func() bool { return countRows(t, env) > 300 }, "the first does not begin")
	second := launch(t, env)
	second.await(pipeline.Standby)

	first.signal(syscall.SIGSTOP)
	second.await(pipeline.Streaming)
	rows := countRows(t, env)
	await.True(t, func() bool { return countRows(t, env) > rows+100 }, "the second does not go on")
	first.signal(syscall.SIGCONT)
	first.says("standby: another streamer holds the slot")
	rows = countRows(t, env)
	await.True(t, func() bool { return countRows(t, env) > rows+100 }, "the second is disturbed")
	stop()
	delivered(t, env)
	producersInOrder(t, env)
	assert.Zero(t, second.seen.sessions.Load())
}

// A streamer that waits for ClickHouse is replaced too: it holds rows, and a
// server that has ended its session.
func TestAFrozenStreamerWithAPendingInsertIsReplaced(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := run(t, env, "streamer", "REPLICATION_SENDER_TIMEOUT=2s")
	first.says("streaming")
	hold(t, env)
	trickle(t, env, 20)
	first.says("insert failed, retrying")
	first.signal(syscall.SIGSTOP)
	second := start(t, env, func(c *setup) { c.SenderTimeout = 2 * time.Second })
	release(t, env)
	delivered(t, env)
	first.signal(syscall.SIGCONT)
	first.says("standby: another streamer holds the slot")
	trickle(t, env, 20)
	delivered(t, env)
	second.stop()
	trickle(t, env, 20)
	delivered(t, env)
	first.signal(syscall.SIGTERM)
	require.Zero(t, first.exit())
}

// A predecessor dies while ClickHouse works on its insert: the successor sends it once more.
func TestAnInsertThatAPredecessorLeftRunningIsWrittenOnce(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, abrupt)
	slow(t, env)
	publish(t, env, 5)
	await.True(t, func() bool { return running(t, env, 0.2) > 0 }, "ClickHouse is not asked")
	s.crash()
	start(t, env)
	quick(t, env)
	publish(t, env, 5)
	await.True(t, func() bool { return running(t, env, 0) == 0 }, "inserts run for ever")
	require.Equal(t, 10, delivered(t, env))
}

// Between the registration of an insert and its data stands the proof that the
// slot is ours: while PostgreSQL does not answer, nothing is written.
func TestNothingIsWrittenBeforeTheSlotIsProvedToBeOurs(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env)
	publish(t, env, 5)
	rows := delivered(t, env)
	// A position without rows is proved, too: then the insert is not the one that waits.
	await.True(t, func() bool {
		ofAnInsert := proofWaits(t, env, s, rows)
		rows = delivered(t, env)
		return ofAnInsert
	}, "no insert waits for its proof")
	assert.Zero(t, s.seen.sessions.Load())
}

// proofWaits publishes rows while PostgreSQL cannot answer whose the slot is, and
// demands that nothing is written meanwhile. It reports whether an insert was waiting.
func proofWaits(t testing.TB, env *testenv.Env, s *streamer, rows int) bool {
	t.Helper()
	lock, err := pgx.Connect(t.Context(), env.PostgresURL)
	require.NoError(t, err)
	defer lock.Close(t.Context())
	tx, err := lock.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "LOCK TABLE pg_publication IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	publish(t, env, 5)
	await.True(t, func() bool {
		var waiting bool
		query := "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND backend_type = 'client backend' AND wait_event_type = 'Lock')"
		require.NoError(t, env.Pool.QueryRow(t.Context(), query, s.pipeline.Progress().Session()).Scan(&waiting))
		return waiting
	}, "no proof is asked for")
	var registered uint64
	query := "SELECT count() FROM system.processes WHERE startsWith(query_id, $1)"
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), query, queryPrefix(t, env)).Scan(&registered))
	assert.Equal(t, rows, countRows(t, env), "ClickHouse has not got the rows")
	require.NoError(t, tx.Rollback(t.Context()))
	return registered == 1
}

// queryPrefix begins the id of every insert of env's slot, of which rows are written.
func queryPrefix(t testing.TB, env *testenv.Env) string {
	t.Helper()
	var source string
	query := "SELECT DISTINCT source FROM " + env.ClickHouseConfig.EventLogTable
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), query).Scan(&source))
	systemID, slot, _ := strings.Cut(source, "/")
	return sink.Source{SystemID: systemID, Slot: slot}.QueryPrefix()
}
