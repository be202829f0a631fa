package main

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/testenv"
	"diehard/streamer/doctor"
)

// The runbook's entry for a slot that is gone, step by step, with producers that go on.
func TestASlotThatIsDroppedIsCuredAsTheRunbookSays(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	t.Setenv("STREAMER_ADDR", freeAddress(t))
	t.Setenv("LOG_LEVEL", "error")
	cmd := root()
	cmd.SetArgs([]string{"run"})
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(t.Context()) }()
	awaitTrue(t, "the streamer takes the slot", func() bool {
		var active bool
		err := env.Pool.QueryRow(t.Context(), "SELECT active AND confirmed_flush_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = $1", env.Slot).Scan(&active)
		return err == nil && active
	})
	deliver(t, env, 30)
	stop := produceEvents(t, env)
	dropUnderTheStreamer(t, env)
	require.ErrorContains(t, <-ended, "streamer slot create")

	out, err := command(t, "status")
	require.NoError(t, err)
	assert.Regexp(t, "(?m)^slot +GONE, .*`streamer doctor`$", out)
	out, err = command(t, "doctor")
	require.ErrorIs(t, err, exitCode(doctor.Error))
	assert.Regexp(t, `(?m)^  FAIL  slot .* is gone: events may be missing in ClickHouse$`, out)
	assert.Contains(t, out, "streamer slot create, start the streamer, streamer replay --from-table")

	var lost int // that no slot will deliver; at least one
	awaitTrue(t, "events are missing", func() bool {
		rows, _ := eventLog(t, env)
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) - $1 FROM outbox", int64(rows)).Scan(&lost))
		return lost > 0
	})
	out, err = command(t, "slot", "drop")
	require.NoError(t, err)
	assert.Contains(t, out, "did not exist")
	_, err = command(t, "slot", "create")
	require.NoError(t, err)
	streamUntilEnd(t, env)
	out, err = command(t, "replay", "--from-table")
	require.NoError(t, err)
	assert.NotContains(t, out, "\n0 were missing")
	stop()
	deliver(t, env, 1)
	out, err = command(t, "verify")
	require.NoError(t, err, out)
	rows, events := eventLog(t, env)
	assert.Equal(t, rows, events, "no duplicates")
}

func TestASlotIsGivenUpForGood(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	known := func() (known bool) {
		t.Helper()
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM streamer_slot)").Scan(&known))
		return known
	}
	for _, step := range []struct {
		args  []string
		says  string
		known bool
	}{
		{[]string{"slot", "create"}, "starts at", true},
		{[]string{"slot", "drop"}, "dropped", true},
		{[]string{"slot", "create"}, "starts at", true},
		{[]string{"slot", "drop", "--for-good"}, "dropped", false},
		{[]string{"slot", "create"}, "starts at", true},
		{[]string{"slot", "drop"}, "dropped", true},
		{[]string{"slot", "drop", "--for-good"}, "did not exist", false},
	} {
		out, err := command(t, step.args...)
		require.NoError(t, err)
		assert.Contains(t, out, step.says)
		assert.Equal(t, step.known, known(), step.args)
	}
}

// produceEvents publishes one event after the other until stop is called.
func produceEvents(t *testing.T, env *testenv.Env) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			_, err = env.Pool.Exec(context.WithoutCancel(ctx), "INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')")
		}
		done <- err
	}()
	return func() {
		t.Helper()
		cancel()
		require.NoError(t, <-done)
	}
}

// dropUnderTheStreamer is faster than the streamer takes the slot again.
func dropUnderTheStreamer(t *testing.T, env *testenv.Env) {
	t.Helper()
	awaitTrue(t, "the slot is dropped", func() bool {
		_, err := env.Pool.Exec(t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", env.Slot)
		require.NoError(t, err)
		_, err = env.Pool.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", env.Slot)
		return err == nil
	})
}
