package main

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/decode"
	"diehard/streamer/replay"
)

// streamUntilEnd runs `streamer run` in this process until the test ends.
func streamUntilEnd(t *testing.T, env *testenv.Env) {
	t.Helper()
	t.Setenv("STREAMER_ADDR", "127.0.0.1:0")
	t.Setenv("CLICKHOUSE_FLUSH_INTERVAL", "20ms")
	t.Setenv("LOG_LEVEL", "error")
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := runStreamer(ctx)
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	await.True(t, func() bool { return holdsSlot(t, env) }, "the streamer takes the slot")
}

// deliver publishes n events and waits until the streamer has confirmed them.
func deliver(t *testing.T, env *testenv.Env, n int) (end string) {
	t.Helper()
	_, err := env.Pool.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) SELECT 't', json_build_object('n', n) FROM generate_series(1, $1::int) n", n)
	require.NoError(t, err)
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT pg_current_wal_lsn()::text").Scan(&end))
	await.True(t, func() bool {
		var done bool
		err := env.Pool.QueryRow(t.Context(), "SELECT coalesce((SELECT confirmed_flush_lsn >= $2::pg_lsn FROM pg_replication_slots WHERE slot_name = $1), false)",
			env.Slot, end).Scan(&done)
		return err == nil && done
	}, "the streamer confirms")
	return end
}

// A row of the outbox does not know its place.
func TestADifferenceWithoutAPlaceHasNone(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, printDifferences(&out, []replay.Difference{
		{Kind: replay.Missing}, {Kind: replay.Extra, Position: decode.Position{LSN: 0x10, Seq: 7}},
	}))
	assert.Regexp(t, `(?m)^missing +[0-9-]+ +- +- *$`, out.String())
	assert.Regexp(t, `(?m)^extra +[0-9-]+ +0/10 +7 *$`, out.String())
	out.Reset()
	require.NoError(t, printDifferences(&out, nil))
	assert.Empty(t, out.String())
}

func TestReplayOnTheCommandLine(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	streamUntilEnd(t, env)
	out, err := command(t, "verify")
	require.NoError(t, err)
	assert.Equal(t, "nothing to compare: no events in the outbox\n", out)
	out, err = command(t, "bookmark", "list")
	require.NoError(t, err)
	assert.Regexp(t, "^no bookmarks: `streamer bookmark add NAME` adds one.*\n$", out)
	deliver(t, env, 1)
	out, err = command(t, "bookmark", "add", "noon")
	require.NoError(t, err)
	assert.Regexp(t, `^bookmark noon: replay is possible from [0-9A-F]+/[0-9A-F]+ on; it keeps [\d.]+ \w+ of WAL`, out)
	from := deliver(t, env, 40)
	end := deliver(t, env, 60)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "ALTER TABLE event_log DELETE WHERE commit_seq = 7 SETTINGS mutations_sync = 2"))

	out, err = command(t, "verify", "--from-bookmark", "noon", "--limit", "1")
	require.ErrorIs(t, err, exitCode(1))
	assert.Contains(t, out, "100 events in ")
	assert.Contains(t, out, ": 98 equal, 0 dead letters, 2 missing, 0 extra, 0 different\n")
	assert.Contains(t, out, "and 1 more: see --limit\n")

	out, err = command(t, "replay", "--from-lsn", from, "--dry-run")
	require.NoError(t, err)
	assert.Contains(t, out, "1 are missing and would be filled\n")
	out, err = command(t, "replay", "--from-lsn", from, "--to-lsn", end)
	require.NoError(t, err)
	assert.Regexp(t, `^60 events read from `+from+` to `+end+` in .*\n59 were in the event log already\n1 were missing, 1 of them are filled now\n$`, out)
	out, err = command(t, "replay", "--from-table", "--since", "1h")
	require.NoError(t, err)
	assert.Contains(t, out, "1 were missing, 1 of them are filled now\n")
	for _, args := range [][]string{{"verify"}, {"verify", "--from-bookmark", "noon"}} {
		out, err = command(t, args...)
		require.NoError(t, err)
		assert.Contains(t, out, " 0 missing, 0 extra, 0 different\n")
	}

	out, err = command(t, "bookmark", "move", "noon", "--to", from)
	require.NoError(t, err)
	assert.Contains(t, out, "replay is possible from "+from+" on")
	out, err = command(t, "bookmark", "list")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^noon +`+from+` .*(reserved|extended)$`, out)
	_, err = command(t, "bookmark", "drop", "noon")
	require.NoError(t, err)
	_, err = command(t, "replay", "--from-lsn", from)
	require.ErrorContains(t, err, "no bookmark lies at or before it")
}

func TestReplayRefusesWhatContradicts(t *testing.T) {
	use(t, testenv.New(t))
	for _, test := range []struct{ args, says string }{
		{"replay", "at least one of the flags"},
		{"replay --from-table --from-lsn 0/1", "none of the others can be"},
		{"replay --from-table --to-lsn 0/1", "none of the others can be"},
		{"replay --from-lsn 0/1 --since 1h", "add --from-table"},
		{"replay --from-lsn 17", "is not an LSN such as"},
		{"replay --from-table --since yesterday", "is neither a time"},
		{"verify --to-lsn 0/1", "needs a beginning"},
		{"bookmark add No", "lower-case letters"},
		{"run --start-lsn 0/0", "is not an LSN such as"},
	} {
		_, err := command(t, strings.Fields(test.args)...)
		require.ErrorContains(t, err, test.says, test.args)
	}
}

func TestProgressWithoutATerminalIsALogLineNowAndThen(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := newProgress("replaying", eventCount, &out, slog.New(slog.NewTextHandler(&out, nil)))
	p.report(1, 10)
	assert.Empty(t, out.String())
	p.shown, p.began = p.shown.Add(-logEvery), p.began.Add(-10*time.Second)
	p.report(5, 10)
	p.report(6, 10)
	p.end()
	assert.Regexp(t, `^time=\S+ level=INFO msg=progress of=replaying done="5 events" total="10 events" left=10s\n$`, out.String())
}

func TestProgressBar(t *testing.T) {
	t.Parallel()
	p := newProgress("replaying", eventCount, &bytes.Buffer{}, slog.New(slog.DiscardHandler))
	assert.Equal(t, "\rreplaying  [===============               ]  50%  5 events of 10 events  1m0s left\x1b[K", p.line(5, 10, time.Minute))
	assert.Equal(t, "\rreplaying  [==============================] 100%  10 events of 10 events  0s left\x1b[K", p.line(10, 10, time.Minute))
	assert.Equal(t, "\rreplaying  7 events\x1b[K", p.line(7, 0, time.Minute))
}
