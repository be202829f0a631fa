package main

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/streamer/doctor"
	"diehard/streamer/ops"
)

// The runbook's entry for a slot that is gone, step by step, with producers that go on.
func TestASlotThatIsDroppedIsFixedAsTheRunbookSays(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	t.Setenv("STREAMER_ADDR", testenv.FreeAddress(t))
	t.Setenv("STREAMER_EXIT_ON_FAILURE", "true")
	t.Setenv("LOG_LEVEL", "error")
	cmd := root()
	cmd.SetArgs([]string{"run"})
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(t.Context()) }()
	await.True(t, func() bool { return holdsSlot(t, env) }, "the streamer takes the slot")
	deliver(t, env, 30)
	stop := produceEvents(t, env, 1)
	dropUnderTheStreamer(t, env)
	require.ErrorContains(t, <-ended, "streamer slot create")

	out, err := command(t, "status")
	require.NoError(t, err)
	assert.Regexp(t, "(?m)^slot +missing, .*`streamer doctor`$", out)
	out, err = command(t, "doctor")
	require.ErrorIs(t, err, exitCode(doctor.Error))
	assert.Regexp(t, `(?m)^  FAIL  slot .* is gone, and with it the position in the WAL: events may be missing in ClickHouse$`, out)
	assert.Contains(t, out, "`streamer slot create`, start the streamer, `streamer replay --from-table`")

	var lost int // that no slot will deliver; at least one
	await.True(t, func() bool {
		rows, _ := eventLog(t, env)
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) - $1 FROM outbox", int64(rows)).Scan(&lost))
		return lost > 0
	}, "events are missing")
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

// A streamer that cannot run stays up, says why, and goes on when the operator has acted.
func TestAStreamerThatCannotRunStaysUpAndRecovers(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	t.Setenv("STREAMER_ADDR", testenv.FreeAddress(t))
	t.Setenv("LOG_LEVEL", "error")
	ctx, stop := context.WithCancel(t.Context())
	ended := runStreamer(ctx)
	status := func() ops.Status {
		s, _ := ops.AskStreamer(t.Context(), os.Getenv("STREAMER_ADDR")) // not up yet: the zero Status
		return s
	}
	await.True(t, func() bool { return status().Ready }, "the streamer is ready")
	deliver(t, env, 10)
	dropUnderTheStreamer(t, env)
	await.True(t, func() bool {
		s := status()
		return s.State == ops.Failed && s.Cause == failure.SlotLost && !s.Ready
	}, "the streamer says that it cannot run")
	out, err := command(t, "status")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^streamer +FAILED \(slot_lost\), up `, out)
	_, err = command(t, "slot", "create")
	require.NoError(t, err)
	await.True(t, func() bool { return status().Ready }, "the streamer goes on by itself")
	deliver(t, env, 10)
	stop()
	require.NoError(t, <-ended)
}

func TestASlotIsForgotten(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	known := func() (known bool) {
		t.Helper()
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM diehard_slot)").Scan(&known))
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
		{[]string{"slot", "drop", "--forget"}, "dropped", false},
		{[]string{"slot", "create"}, "starts at", true},
		{[]string{"slot", "drop"}, "dropped", true},
		{[]string{"slot", "drop", "--forget"}, "did not exist", false},
	} {
		out, err := command(t, step.args...)
		require.NoError(t, err)
		assert.Contains(t, out, step.says)
		assert.Equal(t, step.known, known(), step.args)
	}
}

// producerPace is the time between two transactions of produceEvents.
const producerPace = 20 * time.Millisecond

// produceEvents publishes transactions of n events, one after the other, until stop is called.
func produceEvents(t *testing.T, env *testenv.Env, n int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		pace := time.NewTicker(producerPace) // on a slow machine the readers fall behind for ever otherwise
		defer pace.Stop()
		var err error
		for ; ctx.Err() == nil && err == nil; <-pace.C {
			_, err = env.Pool.Exec(context.WithoutCancel(ctx), "INSERT INTO outbox (event_type, event_context) SELECT 't', '{}' FROM generate_series(1, $1::int)", n)
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
	await.True(t, func() bool {
		_, err := env.Pool.Exec(t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", env.Slot)
		require.NoError(t, err)
		_, err = env.Pool.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", env.Slot)
		return err == nil
	}, "the slot is dropped")
}
