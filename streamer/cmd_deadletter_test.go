package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// running has the streamer follow its slot until stop is called.
func running(t *testing.T, env *testenv.Env) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := runStreamer(ctx)
	await.True(t, func() bool { return holdsSlot(t, env) }, "the streamer holds the slot")
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

// eventLog counts event_log, and how many different events are in it.
func eventLog(t *testing.T, env *testenv.Env) (rows, events uint64) {
	t.Helper()
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count(), uniqExact(event_id) FROM event_log").Scan(&rows, &events))
	return rows, events
}

func publish(t *testing.T, env *testenv.Env, kind, at string) uuid.UUID {
	t.Helper()
	var id uuid.UUID
	err := env.Pool.QueryRow(t.Context(), `INSERT INTO outbox (event_type, event_date_time, event_context)
		VALUES ($1, $2::text::timestamptz, '{"secret": "hunter2"}') RETURNING id`, kind, at).Scan(&id)
	require.NoError(t, err)
	return id
}

// From the refusal to the row in event_log, as an operator lives through it.
func TestDeadLettersAreListedAndRetried(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	t.Setenv("STREAMER_ADDR", testenv.FreeAddress(t))
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "ALTER TABLE event_log ADD CONSTRAINT no_bad CHECK event_type != 'bad'"))
	env.AllowOutOfRange(t)
	stop := running(t, env)
	publish(t, env, "good", "2026-01-01")
	bad := publish(t, env, "bad", "2026-01-01")
	never := publish(t, env, "never", "infinity")
	publish(t, env, "good", "2026-01-01")

	list := func(args ...string) []map[string]any {
		out, err := command(t, append([]string{"deadletter", "list", "--json"}, args...)...)
		require.NoError(t, err)
		var found []map[string]any
		for line := range strings.Lines(out) {
			var record map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &record))
			found = append(found, record)
		}
		return found
	}
	await.True(t, func() bool {
		rows, _ := eventLog(t, env)
		return rows == 2 && len(list()) == 2
	}, "two rows and the dead letters are there")
	found := list("--type", "bad")
	require.Len(t, found, 1)
	assert.Equal(t, bad.String(), found[0]["event_id"])
	assert.InDelta(t, 469, found[0]["error_code"], 0)
	assert.Equal(t, "ClickHouse refused it with code 469 (VIOLATED_CONSTRAINT)", found[0]["reason"], "which quotes nothing")
	assert.Contains(t, list("--type", "bad", "--full")[0]["reason"], "no_bad")
	assert.Nil(t, found[0]["retried_at"])
	assert.Nil(t, found[0]["dropped_at"])
	out, err := command(t, "deadletter", "list", "--id", never.String())
	require.NoError(t, err)
	assert.Regexp(t, `(?s)^FAILED AT +EVENT ID +EVENT TYPE .*`+never.String()+` +never .* open +column event_date_time is infinite\n$`, out)
	out, err = command(t, "deadletter", "list", "--limit", "1")
	require.NoError(t, err)
	assert.Contains(t, out, "there may be more: --limit is 1")

	out, err = command(t, "deadletter", "retry", "--all")
	require.EqualError(t, err, "2 events are still dead letters")
	assert.Contains(t, out, bad.String()+" bad at ")
	assert.Contains(t, out, "refused: column event_date_time is infinite\n")
	assert.Contains(t, out, "refused: ClickHouse refused it with code 469 (VIOLATED_CONSTRAINT)\n")
	assert.Contains(t, out, "0 written, 0 already written, 2 refused, 0 too early\n")
	assert.NotContains(t, out, "hunter2", "no payload")

	require.NoError(t, env.ClickHouse.Exec(t.Context(), "ALTER TABLE event_log DROP CONSTRAINT no_bad"))
	out, err = command(t, "deadletter", "retry", "--id", bad.String())
	require.NoError(t, err)
	assert.Equal(t, "1 written, 0 already written, 0 refused, 0 too early\n", out)
	_, err = command(t, "deadletter", "retry", "--id", bad.String())
	require.ErrorContains(t, err, "no dead letter matches")
	assert.Len(t, list(), 1)
	assert.Len(t, list("--retried"), 2)
	assert.NotNil(t, list("--retried", "--type", "bad")[0]["retried_at"])
	stop()

	// The streamer goes on where it was.
	stop = running(t, env)
	publish(t, env, "good", "2026-01-01")
	await.True(t, func() bool { rows, _ := eventLog(t, env); return rows >= 4 }, "four rows are there")
	stop()
	rows, events := eventLog(t, env)
	assert.Equal(t, []uint64{4, 4}, []uint64{rows, events})
	assert.Len(t, list(), 1)
}

// What can never be stored is given up, and it stays known that it was.
func TestDeadLettersAreDropped(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	t.Setenv("STREAMER_ADDR", testenv.FreeAddress(t))
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "ALTER TABLE event_log ADD CONSTRAINT no_bad CHECK event_type != 'bad'"))
	env.AllowOutOfRange(t)
	stop := running(t, env)
	defer func() { stop() }()
	never, bad := publish(t, env, "never", "infinity"), publish(t, env, "bad", "2026-01-01")
	publish(t, env, "bad", "2026-01-01")
	says := func(wants string, args ...string) {
		t.Helper()
		out, err := command(t, args...)
		require.NoError(t, err, out)
		assert.Regexp(t, wants, out)
	}
	await.True(t, func() bool {
		out, err := command(t, "deadletter", "list")
		require.NoError(t, err)
		return strings.Count(out, " open ") == 3
	}, "the dead letters are listed")

	says("^1 dropped\n$", "deadletter", "drop", "--id", never.String())
	_, err := command(t, "deadletter", "drop", "--id", never.String())
	require.EqualError(t, err, errNoMatch.Error())
	says("^2 dropped\n$", "deadletter", "drop", "--type", "bad", "--type", "other")
	says("^0 dropped\n$", "deadletter", "drop", "--all")
	says("^no dead letters\n$", "deadletter", "list")
	says("^0 written, 0 already written, 0 refused, 0 too early\n$", "deadletter", "retry", "--all")
	says("never .* dropped 20.* column event_date_time is infinite", "deadletter", "list", "--dropped")

	// They are known to be missing in event_log, and do not become dead letters again.
	says("^3 events in the outbox: 0 equal, 3 dead letters, 0 missing, 0 extra, 0 different\n$", "verify")
	says("3 are dead letters .*\n0 were missing", "replay", "--from-table")
	says("^no dead letters\n$", "deadletter", "list")

	require.NoError(t, env.ClickHouse.Exec(t.Context(), "ALTER TABLE event_log DROP CONSTRAINT no_bad"))
	says("^1 written", "deadletter", "retry", "--dropped", "--id", bad.String())
	says("written 20", "deadletter", "list", "--retried", "--id", bad.String())
	rows, events := eventLog(t, env)
	assert.Equal(t, []uint64{1, 1}, []uint64{rows, events})
}

func TestDeadLetterCommandsSayWhatTheyNeed(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	for _, args := range [][]string{{}, {"--all", "--type", "a"}, {"--all", "--id", uuid.NewString()}} {
		_, err := command(t, append([]string{"deadletter", "retry"}, args...)...)
		require.EqualError(t, err, "say which events to retry: --id, --type or --all")
		_, err = command(t, append([]string{"deadletter", "drop"}, args...)...)
		require.EqualError(t, err, "say which events to drop: --id, --type or --all")
	}
	for _, verb := range []string{"list", "retry", "drop"} {
		_, err := command(t, "deadletter", verb, "--id", "nonsense")
		require.EqualError(t, err, `--id "nonsense" is not a UUID`)
	}
	out, err := command(t, "deadletter", "retry", "--all")
	require.NoError(t, err, "nothing to do is fine")
	assert.Equal(t, "0 written, 0 already written, 0 refused, 0 too early\n", out)
	out, err = command(t, "deadletter", "list")
	require.NoError(t, err)
	assert.Equal(t, "no dead letters\n", out)
	out, err = command(t, "deadletter", "list", "--json")
	require.NoError(t, err)
	assert.Empty(t, out)
}

// The table shows a line of a long reason, and all of it with --full.
func TestReasonsAreCutUnlessTheyAreWantedInFull(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	ours := "column event_context " + strings.Repeat("é", 500) + " ends here"
	theirs := "code: 469, message: Constraint " + strings.Repeat("x", 500) + " is violated"
	for i, code := range []int32{0, 469} {
		require.NoError(t, env.ClickHouse.Exec(t.Context(), `INSERT INTO event_dead_letter
			(source, timeline, commit_lsn, commit_seq, commit_time, event_type, reason, error_code, failed_at)
			VALUES ('1/slot', 1, 1, ?, now(), 'bad', ?, ?, now())`, i+1, []string{ours, theirs}[i], code))
	}
	out, err := command(t, "deadletter", "list")
	require.NoError(t, err)
	assert.Contains(t, out, "  "+string([]rune(ours)[:200])+"…\n")
	assert.Contains(t, out, "  ClickHouse refused it with code 469 (VIOLATED_CONSTRAINT)\n")
	assert.NotContains(t, out, "violated", "it may quote the event")
	out, err = command(t, "deadletter", "list", "--full")
	require.NoError(t, err)
	assert.Contains(t, out, "  "+ours+"\n")
	assert.Contains(t, out, "  "+theirs+"\n")
	assert.NotContains(t, out, "…")
}

// What ClickHouse says quotes values, and those may hold anything.
func TestReasonsFitATerminal(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "column id is NULL", oneLine("column id is NULL"))
	assert.Equal(t, "größe [31mred of two lines", oneLine("größe \x1b[31mred\tof\n\r\n two  lines\x00"))
	long := oneLine(strings.Repeat("é", 1<<20))
	assert.Equal(t, strings.Repeat("é", 200)+"…", long)
	assert.Empty(t, oneLine(""))
}
