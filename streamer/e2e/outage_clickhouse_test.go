package e2e

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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

func TestClickHouseIsAwayAtTheStart(t *testing.T) {
	t.Parallel()
	env, engine := ownClickHouse(t)
	start(t, env).stop()
	publish(t, env, 10)
	require.NoError(t, engine.Stop(t.Context()))
	s := launch(t, env)
	eventually(t, func() bool { return s.seen.sessions.Load() > 1 }, "it does not try again")
	require.NoError(t, engine.Start(t.Context()))
	delivered(t, env)
}

// Killed at any moment of an insert, also when the rows are in and the answer is
// not out: what is in doubt is read back.
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

// A server that answers too late has the rows, maybe: the try is given up, and
// there is no other before it is known whether the first one landed.
func TestClickHouseAnswersLate(t *testing.T) {
	t.Parallel()
	env, engine := ownClickHouse(t)
	s := start(t, env, func(c *setup) { c.InsertTimeout = 500 * time.Millisecond })
	for range 2 {
		retries := s.seen.retries.Load()
		require.NoError(t, engine.Pause())
		publish(t, env, 5000)
		eventually(t, func() bool { return s.seen.retries.Load() > retries+1 }, "a late answer is waited for")
		require.NoError(t, engine.Resume())
		delivered(t, env)
	}
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
			s := start(t, env)
			publish(t, env, 1)
			delivered(t, env)
			command(t, env, "SYSTEM STOP MERGES LOG")
			command(t, env, c.refuse)
			publish(t, env, 100)
			eventually(t, func() bool { return s.seen.retries.Load() > 1 }, "it is not refused")
			require.ErrorContains(t, s.seen.retried(), c.message)
			assert.Equal(t, pipeline.Retrying, s.pipeline.Progress().State())
			assert.Equal(t, 1, countRows(t, env))
			command(t, env, c.allow)
			delivered(t, env)
			s.await(pipeline.Streaming)
			assert.Zero(t, s.seen.letters.Load())
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
	eventually(t, func() bool { return poor.seen.retries.Load() > 1 }, "memory suffices")
	require.ErrorContains(t, poor.seen.retried(), "MEMORY_LIMIT_EXCEEDED")
	poor.cancel()
	<-poor.done
	assert.Zero(t, poor.seen.letters.Load(), "rows are not to blame")
	start(t, env)
	delivered(t, env)
}
