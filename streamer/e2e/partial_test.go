package e2e

import (
	"context"
	"fmt"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// asStreamer is env as a login sees it that is a member of diehard_streamer and nothing more.
func asStreamer(t testing.TB, env *testenv.Env) *testenv.Env {
	t.Helper()
	execute(t, env, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'secret' REPLICATION IN ROLE diehard_streamer", env.Slot))
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+env.Slot)
		assert.NoError(t, err)
	})
	login := *env
	login.PostgresURL = testenv.AsUser(t, env.PostgresURL, env.Slot, "secret")
	return &login
}

// oldEvents publishes events of a day eleven days ago, in a partition of that day.
func oldEvents(t testing.TB, env *testenv.Env, n int) (partition string) {
	t.Helper()
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT 'diehard_outbox_p' || to_char(now() AT TIME ZONE 'UTC' - interval '11 days', 'YYYYMMDD')").Scan(&partition))
	execute(t, env, fmt.Sprintf(`DO $$ DECLARE day date := (now() AT TIME ZONE 'UTC')::date - 11; BEGIN
		EXECUTE format('CREATE TABLE %s PARTITION OF outbox FOR VALUES FROM (%%L) TO (%%L)', day || ' 00:00:00+00', (day + 1) || ' 00:00:00+00'); END $$`, partition))
	execute(t, env, fmt.Sprintf(`INSERT INTO outbox (event_type, event_context, published_at)
		SELECT 'old', '{}', ((now() AT TIME ZONE 'UTC')::date - 11)::timestamp AT TIME ZONE 'UTC' + interval '1 hour' FROM generate_series(1, %d)`, n))
	return partition
}

// retire takes every step that retention would take in a week's time.
func retire(t testing.TB, env *testenv.Env) {
	t.Helper()
	for range 10 {
		execute(t, env, "SELECT outbox_retire_partitions('7 days', now())")
	}
}

func exists(t testing.TB, env *testenv.Env, table string) (there bool) {
	t.Helper()
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT to_regclass($1) IS NOT NULL", table).Scan(&there))
	return there
}

var rlsFix = regexp.MustCompile(`(?m)^ +fix +(ALTER TABLE .* DISABLE ROW LEVEL SECURITY;)$`)

// Row level security without a policy shows no row and raises no error, unless one asks for
// an error: the runbook of a lost slot must not take that for an empty outbox.
func TestTheRunbookOfALostSlotUnderRowLevelSecurity(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	login := asStreamer(t, env)
	s := start(t, login)
	publish(t, env, 3)
	delivered(t, env)
	s.stop()
	execute(t, env, "ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
	execute(t, env, "SELECT pg_drop_replication_slot($1)", env.Slot)
	partition := oldEvents(t, env, 500)

	for _, verb := range []string{"drop", "create"} {
		slotCommand(t, login, verb)
	}
	s = start(t, login)
	replay := runArgs(t, login, "streamer", []string{"replay", "--from-table"})
	require.NotZero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "row-level security")
	assert.NotContains(t, replay.log.text(), "0 were missing")
	verify := runArgs(t, login, "streamer", []string{"verify"})
	require.NotZero(t, verify.exit(), verify.log.text())
	publish(t, env, 3)
	awaitRows(t, env, 6)
	retire(t, env)
	assert.True(t, exists(t, env, partition), "its rows are not delivered")

	doctor := runArgs(t, login, "streamer", []string{"doctor"})
	doctor.exit()
	fix := rlsFix.FindStringSubmatch(doctor.log.text())
	require.NotNil(t, fix, doctor.log.text())
	execute(t, env, fix[1])
	replay = runArgs(t, login, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "500 were missing, 500 of them are filled now")
	delivered(t, env)
	await.True(t, func() bool { retire(t, env); return !exists(t, env, partition) }, "what is delivered is never retired")
	s.stop()
}

// The same where the policies are on the tables of the streamer itself.
func TestRowLevelSecurityOnTheStreamersOwnTables(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"diehard_slot", "diehard_intent", "diehard_retired"} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			login := asStreamer(t, env)
			s := start(t, login)
			publish(t, env, 3)
			delivered(t, env)
			s.stop()
			execute(t, env, "ALTER TABLE "+table+" ENABLE ROW LEVEL SECURITY")
			doctor := runArgs(t, login, "streamer", []string{"doctor"})
			require.NotZero(t, doctor.exit())
			fix := rlsFix.FindStringSubmatch(doctor.log.text())
			require.NotNil(t, fix, doctor.log.text())
			if table != "diehard_retired" { // which functions of the owner read
				says(t, launch(t, login).refusal(), "row-level security", "DISABLE ROW LEVEL SECURITY", table)
			}
			execute(t, env, fix[1])
			start(t, login)
			publish(t, env, 3)
			delivered(t, env)
		})
	}
}

// A part of the outbox that may not be read is an error, and not an empty part.
func TestAPartitionThatMayNotBeRead(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	login := asStreamer(t, env)
	execute(t, env, "INSERT INTO outbox (event_type, event_context, published_at) VALUES ('early', '{}', now() + interval '20 days')")
	execute(t, env, "SELECT outbox_create_partitions(9, 1)") // takes the default partition out
	var former string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT partition FROM diehard_partitions WHERE state = 'detached'").Scan(&former))
	execute(t, env, "REVOKE ALL ON "+former+" FROM diehard_streamer")
	start(t, login)
	replay := runArgs(t, login, "streamer", []string{"replay", "--from-table"})
	require.NotZero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "permission denied for table "+former)
	execute(t, env, "GRANT SELECT ON "+former+" TO diehard_streamer")
	replay = runArgs(t, login, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "1 were missing, 1 of them are filled now")
}
