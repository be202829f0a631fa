package doctor_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
	"diehard/streamer/doctor"
)

// named puts the test's own name for SLOT.
func named(statements string, env *testenv.Env) string {
	return strings.ReplaceAll(statements, "SLOT", env.Slot)
}

// streamerURL is env as a login sees it that is no superuser.
func streamerURL(t *testing.T, env *testenv.Env) string {
	t.Helper()
	execute(t, env, "postgresql", named("CREATE ROLE SLOT LOGIN PASSWORD 'secret' REPLICATION IN ROLE diehard_streamer", env))
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), named("DROP ROLE SLOT", env))
		assert.NoError(t, err)
	})
	return testenv.AsUser(t, env.PostgresURL, env.Slot, "secret")
}

// warned returns the warning of a check, nil when there is none.
func warned(t *testing.T, p doctor.Target, check string) *doctor.Finding {
	t.Helper()
	for _, f := range doctor.Check(t.Context(), p) {
		if f.Check == check {
			return &f
		}
	}
	return nil
}

// What harms a streamer that runs. The fix, executed literally, ends the warning.
func TestWarningsOfADatabase(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		check, harm, actual, fix string
		minimum                  int
	}{
		{"row level security", "ALTER TABLE outbox ENABLE ROW LEVEL SECURITY; ALTER TABLE diehard_outbox_default ENABLE ROW LEVEL SECURITY", "diehard_outbox_default, outbox", "", 0},
		{
			"default_transaction_read_only", "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$", "on for all roles in database",
			"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); END $$", 0,
		},
		{
			"subscription", "CREATE SUBSCRIPTION SLOT CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false); INSERT INTO pg_subscription_rel SELECT oid, 'outbox'::regclass, 'r' FROM pg_subscription WHERE subname = 'SLOT'",
			"a subscription writes the outbox", "ALTER SUBSCRIPTION SLOT SET (slot_name = NONE); DROP SUBSCRIPTION SLOT", 16,
		},
		{
			"publication's record", "SELECT pg_create_logical_replication_slot('SLOT', 'pgoutput'); INSERT INTO diehard_slot (slot_name, publication_state) VALUES ('SLOT', 'another')",
			"was changed or recreated", "UPDATE diehard_slot SET publication_state = NULL", 0,
		},
	} {
		t.Run(c.check, func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			if env.Major(t) < c.minimum {
				t.Skip("needs a newer PostgreSQL")
			}
			p := target(t, env, streamerURL(t, env))
			require.Nil(t, warned(t, p, c.check))
			execute(t, env, "postgresql", named(c.harm, env))
			f := warned(t, p, c.check)
			require.NotNil(t, f)
			assert.Equal(t, doctor.Warning, f.Level)
			assert.Contains(t, f.Actual, c.actual)
			if c.fix == "" {
				c.fix = f.Fix
			}
			execute(t, env, "postgresql", named(c.fix, env))
			assert.Nil(t, warned(t, p, c.check))
		})
	}
}

// A role that reads reports is read-only on purpose.
func TestOnlyProducersAreWarnedOfReadOnlySessions(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := target(t, env, streamerURL(t, env))
	execute(t, env, "postgresql", named("ALTER ROLE SLOT IN DATABASE SLOT SET default_transaction_read_only = on", env))
	require.Nil(t, warned(t, p, "default_transaction_read_only"))
	execute(t, env, "postgresql", named("GRANT diehard_producer TO SLOT", env))
	f := warned(t, p, "default_transaction_read_only")
	require.NotNil(t, f)
	assert.Contains(t, f.Actual, named("on for role SLOT in database SLOT", env))
}

// What only a whole server can have.
func TestWarningsOfAServer(t *testing.T) {
	t.Parallel()
	settings := embedded.TestSettings()
	settings["synchronous_standby_names"] = "ANY 1 (near, *)"
	settings["max_prepared_transactions"] = "2"
	settings["synchronous_commit"] = "local"
	shared := testenv.New(t)
	env := *shared
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "diehard", Settings: settings})
	env.PostgresURL = engine.URL("diehard")
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: env.PostgresURL}, slog.New(slog.DiscardHandler)))
	env.Pool = testenv.Pool(t, env.PostgresURL, 2)
	p := target(t, &env, env.PostgresURL)

	f := warned(t, p, "synchronous_standby_names")
	require.NotNil(t, f)
	assert.Contains(t, f.Actual, "commits of producers may wait")
	execute(t, &env, "postgresql", "BEGIN; SELECT publish_event('t', '{}'); PREPARE TRANSACTION 'left behind'")
	f = warned(t, p, "prepared transactions")
	require.NotNil(t, f)
	assert.Contains(t, f.Actual, "left behind")
	execute(t, &env, "postgresql", "ROLLBACK PREPARED 'left behind'")
	assert.Nil(t, warned(t, p, "prepared transactions"))

	if env.Major(t) >= 17 {
		for _, statement := range []string{"SELECT pg_create_physical_replication_slot('standby')", "ALTER SYSTEM SET synchronized_standby_slots = 'standby, away'", "SELECT pg_reload_conf()"} {
			execute(t, &env, "postgresql", statement)
		}
		await.True(t, func() bool { f = warned(t, p, "synchronized_standby_slots"); return f != nil }, "the doctor warns")
		assert.Contains(t, f.Actual, "standby, away")
	}
}

// A streamer that waits for the slot is no standby of PostgreSQL's.
func TestAStreamerThatWaitsIsNoStandbyOfTheServer(t *testing.T) {
	t.Parallel()
	env := *testenv.New(t)
	if env.Major(t) < 17 {
		t.Skip("no slots that follow a failover")
	}
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "diehard"})
	env.PostgresURL = engine.URL("diehard")
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: env.PostgresURL}, slog.New(slog.DiscardHandler)))
	env.Pool = testenv.Pool(t, env.PostgresURL, 2)
	execute(t, &env, "postgresql", named("SELECT pg_create_logical_replication_slot('SLOT', 'pgoutput', false, false, true)", &env))
	p := target(t, &env, env.PostgresURL)
	replicate(t, &env, "database")
	assert.Nil(t, warned(t, p, "failover"), "it does not apply")
	replicate(t, &env, "true")
	assert.Equal(t, doctor.Warning, finding(t, p, "postgresql", "failover").Level)
}

// replicate opens a replication session that streams nothing.
func replicate(t *testing.T, env *testenv.Env, kind string) {
	t.Helper()
	cfg, err := pgconn.ParseConfig(env.PostgresURL)
	require.NoError(t, err)
	cfg.RuntimeParams["replication"] = kind
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
}
