package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/pipeline"
)

// outage is how long ClickHouse is away: more than twice the sender timeout, or as
// long as E2E_OUTAGE says, for example 10m.
func outage(t testing.TB) time.Duration {
	t.Helper()
	text, ok := os.LookupEnv("E2E_OUTAGE")
	if !ok {
		return 12 * time.Second
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err, "E2E_OUTAGE")
	return d
}

// An outage beyond wal_sender_timeout must not cost the walsender: statuses go
// out while the writer waits and the reader is blocked by full batches.
func TestClickHouseIsAwayLongerThanTheSenderTimeout(t *testing.T) {
	t.Parallel()
	env, engine := ownClickHouse(t)
	s := start(t, env, func(c *setup) { c.SenderTimeout, c.Limits.Rows = 5*time.Second, 1000 })
	publish(t, env, 10)
	delivered(t, env)
	sender, confirmed := walsender(t, env), slotLSN(t, env, "confirmed_flush_lsn")
	require.NotZero(t, sender)
	require.NoError(t, engine.Stop(t.Context()))

	over := time.After(outage(t))
	trickle(t, env, 200)
	execute(t, env, `INSERT INTO outbox (event_type, event_context)
		SELECT 'wide', to_json(repeat('x', 1000)) FROM generate_series(1, 20000)`) // far beyond the socket's buffers and ours
	s.await(pipeline.Retrying)
	behind := slotLSN(t, env, "confirmed_flush_lsn")
	assert.GreaterOrEqual(t, behind, confirmed)
	<-over
	assert.Equal(t, behind, slotLSN(t, env, "confirmed_flush_lsn"), "nothing is confirmed that is not durable")
	rows, _ := s.pipeline.Progress().Buffered()
	assert.LessOrEqual(t, rows, int64(3*s.cfg.Limits.Rows), "memory is flat: three batches at most")
	assert.Equal(t, sender, walsender(t, env), "the walsender lives")

	require.NoError(t, engine.Start(t.Context()))
	delivered(t, env)
	assert.Equal(t, sender, walsender(t, env), "and is still the same one")
	assert.Zero(t, s.seen.sessions.Load(), "no session ended")
}

// A restart while ClickHouse is away takes the slot, and keeps it until ClickHouse is back.
func TestClickHouseIsAwayAtTheStart(t *testing.T) {
	t.Parallel()
	env, engine := ownClickHouse(t)
	start(t, env).stop()
	publish(t, env, 10)
	require.NoError(t, engine.Stop(t.Context()))
	s := launch(t, env)
	await.True(t, func() bool { return s.seen.retries.Load() > 1 }, "it does not try again")
	sender := walsender(t, env)
	assert.NotZero(t, sender, "the slot is not taken")
	require.NoError(t, engine.Start(t.Context()))
	delivered(t, env)
	assert.Equal(t, sender, walsender(t, env), "the walsender is the one of the outage")
	assert.Zero(t, s.seen.sessions.Load())
}

// Killed at any moment of an insert, also when the rows are in and the answer is
// not out: what is not known is read back.
func TestClickHouseIsKilledInTheMiddleOfAnInsert(t *testing.T) {
	t.Parallel()
	env, engine := ownClickHouse(t)
	s := start(t, env)
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		began := s.seen.nextFlush()
		publish(t, env, 30_000)
		<-began
		<-time.After(delay)
		require.NoError(t, engine.Kill())
		require.NoError(t, engine.Start(t.Context()))
		delivered(t, env)
	}
}

// A server that answers too late has the rows, maybe: the attempt is given up,
// and there is no other before it is known whether the first one was written.
func TestClickHouseAnswersLate(t *testing.T) {
	t.Parallel()
	env, engine := ownClickHouse(t)
	s := start(t, env, func(c *setup) { c.InsertTimeout = 500 * time.Millisecond })
	for range 2 {
		retries := s.seen.retries.Load()
		require.NoError(t, engine.Pause())
		publish(t, env, 5000)
		await.True(t, func() bool { return s.seen.retries.Load() > retries+1 }, "a late answer is waited for")
		require.NoError(t, engine.Resume())
		delivered(t, env)
	}
}

// slow makes every insert into the event log take half a second a row before
// its part is written, until quick. KILL QUERY does not shorten that.
func slow(t testing.TB, env *testenv.Env) {
	t.Helper()
	command(t, env, "ALTER TABLE LOG ADD CONSTRAINT slow CHECK sleepEachRow(0.5) = 0")
}

func quick(t testing.TB, env *testenv.Env) {
	t.Helper()
	command(t, env, "ALTER TABLE LOG DROP CONSTRAINT slow")
}

// running is how many inserts of the slot ClickHouse has been working on for so long.
func running(t testing.TB, env *testenv.Env, seconds float64) int {
	t.Helper()
	var n uint64
	query := "SELECT count() FROM system.processes WHERE position(query_id, $1) > 0 AND elapsed >= $2"
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), query, env.Slot, seconds).Scan(&n))
	return int(n)
}

// An attempt that is given up while ClickHouse works on it is written, and so is the
// next one, which finds nothing yet: their token makes one of them.
func TestAttemptsThatOverlapAreWrittenOnce(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, func(c *setup) { c.InsertTimeout = 2 * time.Second })
	slow(t, env)
	publish(t, env, 5)
	await.True(t, func() bool { return s.seen.retries.Load() > 0 }, "a slow insert is waited for")
	quick(t, env)
	publish(t, env, 5)
	await.True(t, func() bool { return countRows(t, env) >= 10 && running(t, env, 0) == 0 }, "inserts run for ever")
	delivered(t, env)
}

// An insert is written, its answer is lost, and then the rows leave, as by a TTL: the
// repeated insert has the same token, and they stay away.
func TestRowsThatLeaveBeforeTheirInsertIsRepeatedDoNotComeBack(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toClickHouse(t, env)
	s := start(t, env, through, func(c *setup) { c.InsertTimeout = 3 * time.Second })
	slow(t, env)
	publish(t, env, 6)
	await.True(t, func() bool { return running(t, env, 0.2) > 0 }, "ClickHouse is not asked")
	n.silence("downstream")
	awaitRows(t, env, 6)
	quick(t, env)
	command(t, env, "ALTER TABLE LOG DELETE WHERE true SETTINGS mutations_sync = 2")
	require.Zero(t, countRows(t, env))
	n.heal()
	await.True(t, func() bool { return strings.Contains(s.log.text(), "its rows are missing") }, "nothing is said of it")
	execute(t, env, "DELETE FROM outbox")
	publish(t, env, 5)
	require.Equal(t, 5, delivered(t, env))
}

// The last row of a batch leaves: the others are not written again.
func TestTheLastRowLeavesBeforeItsInsertIsRepeated(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toClickHouse(t, env)
	start(t, env, through, func(c *setup) { c.InsertTimeout = 3 * time.Second })
	slow(t, env)
	publish(t, env, 6)
	await.True(t, func() bool { return running(t, env, 0.2) > 0 }, "ClickHouse is not asked")
	n.silence("downstream")
	awaitRows(t, env, 6)
	quick(t, env)
	command(t, env, "ALTER TABLE LOG DELETE WHERE commit_seq = 6 SETTINGS mutations_sync = 2")
	n.heal()
	publish(t, env, 5)
	confirmedPast(t, env)
	awaitRows(t, env, 10)
}

// What ClickHouse refuses for now is tried again until it is taken.
func TestClickHouseRefusesForNow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ message, refuse, allow string }{
		"too many parts": {
			"Too many parts",
			"ALTER TABLE LOG MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1",
			"ALTER TABLE LOG RESET SETTING parts_to_throw_insert, parts_to_delay_insert",
		},
		"read only": {
			"readonly mode",
			"ALTER TABLE LOG MODIFY SETTING table_readonly = 1",
			"ALTER TABLE LOG MODIFY SETTING table_readonly = 0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			s := delivering(t, env, 1)
			command(t, env, "SYSTEM STOP MERGES LOG")
			command(t, env, c.refuse)
			publish(t, env, 100)
			await.True(t, func() bool { return s.seen.retries.Load() > 1 }, "it is not refused")
			require.ErrorContains(t, s.seen.retried(), c.message)
			assert.Equal(t, pipeline.Retrying, s.pipeline.Progress().State())
			assert.Equal(t, 1, countRows(t, env))
			command(t, env, c.allow)
			delivered(t, env)
			s.await(pipeline.Streaming)
			assert.Zero(t, s.seen.deadLetters.Load())
		})
	}
}

func TestClickHouseIsOutOfMemory(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	poor := start(t, env, func(c *setup) {
		c.Settings = map[string]any{"max_memory_usage": 8 << 20}
		c.DrainTimeout = time.Millisecond
	})
	execute(t, env, `INSERT INTO outbox (event_type, event_context)
		SELECT 'wide', to_json(repeat('x', 10000)) FROM generate_series(1, 3000)`)
	await.True(t, func() bool { return poor.seen.retries.Load() > 1 }, "memory suffices")
	require.ErrorContains(t, poor.seen.retried(), "MEMORY_LIMIT_EXCEEDED")
	poor.cancel()
	<-poor.done
	assert.Zero(t, poor.seen.deadLetters.Load(), "rows are not to blame")
	start(t, env)
	delivered(t, env)
}

// The outbox is maintained by the streamer that holds the slot, also when ClickHouse is
// away for longer than there are partitions.
func TestPartitionsAreCreatedWhileClickHouseIsAway(t *testing.T) {
	t.Parallel()
	env, engine := ownClickHouse(t)
	start(t, env).stop()
	var last string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT max(partition) FROM diehard_partitions").Scan(&last))
	execute(t, env, "DROP TABLE "+last)
	require.NoError(t, engine.Stop(t.Context()))
	p := run(t, env, "streamer")
	p.says("query of ClickHouse failed, retrying")
	assert.NotZero(t, walsender(t, env), "the slot is not taken")
	await.True(t, func() bool { return exists(t, env, last) }, "the partition is never created")
}
