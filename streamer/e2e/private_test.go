package e2e

import (
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

// newEnv is testenv.New without waiting for the disk: processes are killed here,
// and not the machine.
func newEnv(t testing.TB) *testenv.Env {
	t.Helper()
	env := testenv.New(t)
	skipFsync(t, env)
	return env
}

func skipFsync(t testing.TB, env *testenv.Env) {
	t.Helper()
	for _, table := range []string{env.ClickHouseConfig.EventLogTable, env.ClickHouseConfig.DeadLetterTable} {
		command(t, env, "ALTER TABLE "+table+" MODIFY SETTING fsync_after_insert = 0, fsync_part_directory = 0")
	}
}

// ownClickHouse gives t a ClickHouse that it may stop, kill and freeze. Counts
// over event_log are -1 while it is away.
func ownClickHouse(t testing.TB) (*testenv.Env, *embedded.ClickHouse) {
	t.Helper()
	env, engine := *newEnv(t), testenv.StartClickHouse(t, embedded.ClickHouseOptions{}) // a copy: the shared connection is closed by its owner
	env.ClickHouseConfig = engine.Config("default")
	require.NoError(t, migrations.UpClickHouse(t.Context(), env.ClickHouseConfig, slog.New(slog.DiscardHandler)))
	var err error
	env.ClickHouse, err = clickhouse.Open(t.Context(), env.ClickHouseConfig)
	require.NoError(t, err)
	t.Cleanup(func() { _ = env.ClickHouse.Close() })
	skipFsync(t, &env)
	return &env, engine
}

// ownPostgres gives t a PostgreSQL that it may stop and kill, with settings of
// its own on top of those of tests.
func ownPostgres(t testing.TB, settings map[string]string) (*testenv.Env, *embedded.Postgres) {
	t.Helper()
	all := embedded.TestSettings()
	for name, value := range settings {
		all[name] = value
	}
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "diehard", Settings: all})
	env := *newEnv(t) // a copy, as above
	env.PostgresURL = engine.URL("diehard")
	for _, set := range []migrations.Set{migrations.Outbox("", ""), migrations.API("")} {
		require.NoError(t, set.Up(t.Context(), postgres.Config{URL: env.PostgresURL}, slog.New(slog.DiscardHandler)))
	}
	var err error
	env.Pool, err = pgxpool.New(t.Context(), env.PostgresURL)
	require.NoError(t, err)
	t.Cleanup(env.Pool.Close)
	return &env, engine
}
