package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/sentrytest"
	"diehard/shared/dev/testenv"
	"diehard/streamer/doctor"
	"diehard/streamer/ops"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// use makes env the environment of this process, and returns a free address for
// the streamer to listen on. Tests that call it do not run in parallel.
func use(t *testing.T, env *testenv.Env) {
	t.Helper()
	for _, entry := range env.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
	t.Setenv("STREAMER_ADDR", "127.0.0.1:1") // nothing listens there
}

// command runs streamer with the given arguments.
func command(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	var buffer bytes.Buffer
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(&buffer)
	err = cmd.ExecuteContext(t.Context())
	return buffer.String(), err
}

// runStreamer runs `streamer run` on STREAMER_ADDR until ctx ends.
func runStreamer(ctx context.Context) (done <-chan error) {
	ended := make(chan error, 1)
	go func() {
		cmd := root()
		cmd.SetArgs([]string{"run"})
		cmd.SetErr(io.Discard)
		ended <- cmd.ExecuteContext(ctx)
	}()
	return ended
}

// isReady asks the streamer of STREAMER_ADDR.
func isReady(ctx context.Context) bool {
	s, err := ops.AskStreamer(ctx, os.Getenv("STREAMER_ADDR"))
	return err == nil && s.Ready
}

// holdsSlot reports that a streamer reads the slot. One that is still being created is
// active, too.
func holdsSlot(t *testing.T, env *testenv.Env) (active bool) {
	t.Helper()
	err := env.Pool.QueryRow(t.Context(), "SELECT count(*) > 0 FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid WHERE slot_name = $1", env.Slot).Scan(&active)
	return err == nil && active
}

// The whole program: its address, its metrics, its Sentry, its end.
func TestRunIsWatched(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	sentry := sentrytest.New(t)
	t.Setenv("SENTRY_CONFIG_DSN", sentry.DSN)
	t.Setenv("STREAMER_ADDR", testenv.FreeAddress(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := runStreamer(ctx)

	await.True(t, func() bool { return isReady(t.Context()) }, "the streamer is ready")
	_, err := env.Pool.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) SELECT 't', '{}' FROM generate_series(1, 12)")
	require.NoError(t, err)
	var out string
	await.True(t, func() bool {
		out, err = command(t, "status")
		return err == nil && strings.Contains(out, "; 12 events in ")
	}, "status never shows the events")
	assert.Regexp(t, `(?m)^streamer +STREAMING, up `, out)
	assert.Regexp(t, `(?m)^slot +active \(diehard-streamer-`, out)
	assert.LessOrEqual(t, strings.Count(out, "\n"), 24, "one screen")

	cancel()
	require.NoError(t, <-done)
	assert.NotEmpty(t, sentry.Items("transaction"), "flushes are traced")
	_, err = ops.AskStreamer(t.Context(), os.Getenv("STREAMER_ADDR"))
	assert.Error(t, err, "nothing listens any more")
}

func TestStatusWithoutAStreamer(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	_, err := env.Pool.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
	require.NoError(t, err)
	_, err = env.Pool.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) SELECT 't', '{}' FROM generate_series(1, 5000)")
	require.NoError(t, err)

	lag := func() (bytes int64) {
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT lag_bytes FROM slot_lag WHERE slot_name = $1", env.Slot).Scan(&bytes))
		return bytes
	}
	before := lag() // other tests write WAL to the same server
	out, err := command(t, "status", "--json")
	require.NoError(t, err)
	var s ops.Status
	require.NoError(t, json.Unmarshal([]byte(out), &s))
	assert.Equal(t, ops.NotRunning, s.State)
	assert.GreaterOrEqual(t, s.Lag.Confirmed.Bytes, before)
	assert.LessOrEqual(t, s.Lag.Confirmed.Bytes, lag())
	assert.Greater(t, s.Lag.Confirmed.Bytes, int64(250_000))
	require.NotNil(t, s.Slot)
	assert.Equal(t, env.Slot, s.Slot.Name)
	assert.Equal(t, 7, s.Outbox.Ahead)

	out, err = command(t, "status")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^streamer +NOT RUNNING, slot `+env.Slot, out)
	assert.Regexp(t, `(?m)^confirmed +[\d.]+ (KiB|MiB) `, out)
	assert.LessOrEqual(t, strings.Count(out, "\n"), 24, "one screen")
}

// Slots have the same name in every installation, and addresses the same default.
func TestStatusDoesNotComeFromAnotherInstallation(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		theirs := ops.Postgres{SystemID: "1"}
		_ = json.NewEncoder(w).Encode(ops.Status{State: "streaming", SlotName: env.Slot, Postgres: ops.PostgresEndpoint{Postgres: &theirs, Up: true}})
	}))
	defer elsewhere.Close()
	t.Setenv("STREAMER_ADDR", elsewhere.Listener.Addr().String())
	out, err := command(t, "status")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^streamer +NOT RUNNING, slot `+env.Slot, out)
}

func TestStatusWhenNothingAnswers(t *testing.T) {
	use(t, testenv.New(t))
	t.Setenv("DATABASE_URL", "postgres://someone:hunter2@127.0.0.1:1/app")
	t.Setenv("CLICKHOUSE_PORT", "1")
	out, err := command(t, "status")
	require.ErrorIs(t, err, errNoAnswer)
	assert.Contains(t, out, "PostgreSQL    unreachable: ask PostgreSQL")
	assert.Contains(t, out, "ClickHouse    unreachable: ")
	assert.NotContains(t, out, "hunter2")
}

func TestDoctorsExitCodeIsTheWorstFinding(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	out, err := command(t, "doctor")
	healthy, _ := errors.AsType[exitCode](err) // 0, or 1 for the settings of a test server
	assert.Less(t, healthy, exitCode(doctor.Error), out)

	_, err = env.Pool.Exec(t.Context(), "DROP PUBLICATION outbox_pub")
	require.NoError(t, err)
	out, err = command(t, "doctor", "--json")
	require.ErrorIs(t, err, exitCode(doctor.Error))
	assert.Contains(t, out, `CREATE PUBLICATION \"outbox_pub\" FOR TABLE public.outbox`)
	assert.Contains(t, out, `"level": "error"`)
}

func TestVersion(t *testing.T) {
	out, err := command(t, "--version")
	require.NoError(t, err)
	assert.Regexp(t, `^streamer \S+ \(commit .+, date .+, go1\..+\)\n$`, out)
}
