package migrations_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// emptyDatabases returns databases beside those of env that no migration has seen.
func emptyDatabases(t *testing.T, env *testenv.Env) (postgresURL string, cfg clickhouse.Config) {
	t.Helper()
	name := env.Slot + "_empty"
	_, err := env.Pool.Exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0")
	require.NoError(t, err)
	cfg = env.ClickHouseConfig
	cfg.Database = name
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		_, err := env.Pool.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
		assert.NoError(t, err)
		assert.NoError(t, env.ClickHouse.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" SYNC"))
	})
	return strings.Replace(env.PostgresURL, "/"+env.Slot, "/"+name, 1), cfg
}

// statusOf lists the migrations of both databases.
func statusOf(t *testing.T, url string, cfg clickhouse.Config) []migrations.Status {
	t.Helper()
	list, err := migrations.Outbox("", "").Status(t.Context(), postgres.Config{URL: url})
	require.NoError(t, err)
	more, err := migrations.StatusClickHouse(t.Context(), cfg)
	require.NoError(t, err)
	return append(list, more...)
}

func TestUpBySeveralAtOnceThenAgain(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	url, cfg := emptyDatabases(t, env)

	pending := statusOf(t, url, cfg)
	require.NotEmpty(t, pending)
	for _, m := range pending {
		assert.False(t, m.Applied(), m.Name)
	}

	group, ctx := errgroup.WithContext(t.Context())
	for range 4 {
		group.Go(func() error {
			return migrations.Up(ctx, postgres.Config{URL: url}, migrations.Outbox("", ""), cfg, slog.New(slog.DiscardHandler))
		})
	}
	require.NoError(t, group.Wait())

	applied := statusOf(t, url, cfg)
	require.Len(t, applied, len(pending))
	for i, m := range applied {
		assert.True(t, m.Applied(), m.Name)
		assert.Equal(t, pending[i].Name, m.Name)
		assert.Equal(t, pending[i].Database, m.Database)
	}

	require.NoError(t, migrations.Up(t.Context(), postgres.Config{URL: url}, migrations.Outbox("", ""), cfg, slog.New(slog.DiscardHandler)))
	again := statusOf(t, url, cfg)
	assert.Equal(t, applied, again)
}

func TestUpSaysWhatItDidAndNothingTheSecondTime(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	url, cfg := emptyDatabases(t, env)
	_, err := connect(t, url).Exec(t.Context(), "REVOKE CREATE ON SCHEMA public FROM PUBLIC") // which is warned of each time
	require.NoError(t, err)
	var lines strings.Builder
	log := slog.New(slog.NewTextHandler(&lines, nil))
	require.NoError(t, migrations.Up(t.Context(), postgres.Config{URL: url}, migrations.Outbox("", ""), cfg, log))
	assert.Contains(t, lines.String(), "database=postgresql migration=00002_outbox.sql")
	assert.Contains(t, lines.String(), "database=clickhouse migration=00001_event_log.sql")
	lines.Reset()
	require.NoError(t, migrations.Up(t.Context(), postgres.Config{URL: url}, migrations.Outbox("", ""), cfg, log))
	assert.Empty(t, lines.String())
}

func TestClickHouseAloneBySeveralAtOnce(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, cfg := emptyDatabases(t, env)
	group, ctx := errgroup.WithContext(t.Context())
	for range 4 {
		group.Go(func() error { return migrations.UpClickHouse(ctx, cfg, slog.New(slog.DiscardHandler)) })
	}
	require.NoError(t, group.Wait())
	list, err := migrations.StatusClickHouse(t.Context(), cfg)
	require.NoError(t, err)
	for _, m := range list {
		assert.True(t, m.Applied(), m.Name)
	}
}

func TestStatusChangesNothing(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	url, cfg := emptyDatabases(t, env)
	for range 2 {
		list := statusOf(t, url, cfg)
		assert.False(t, list[0].Applied())
	}
	var databases uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(),
		"SELECT count() FROM system.databases WHERE name = ?", cfg.Database).Scan(&databases))
	assert.Zero(t, databases)
}

// Roles belong to the whole cluster, so databases that are migrated at the same
// time make the same ones.
func TestSeveralDatabasesOfANewClusterAtOnce(t *testing.T) {
	t.Parallel()
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{})
	admin := connect(t, engine.URL("postgres"))
	group, ctx := errgroup.WithContext(t.Context())
	for i := range 6 {
		name := fmt.Sprintf("app%d", i)
		_, err := admin.Exec(t.Context(), "CREATE DATABASE "+name)
		require.NoError(t, err)
		group.Go(func() error {
			return migrations.Outbox("", "").Up(ctx, postgres.Config{URL: engine.URL(name)}, slog.New(slog.DiscardHandler))
		})
	}
	require.NoError(t, group.Wait())
	var roles int
	require.NoError(t, admin.QueryRow(t.Context(),
		"SELECT count(*) FROM pg_roles WHERE rolname IN ('diehard_api', 'diehard_streamer')").Scan(&roles))
	assert.Equal(t, 2, roles)
}

func TestErrorsSayWhichServerAndKeepThePassword(t *testing.T) {
	t.Parallel()
	err := migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: "postgres://someone:hunter2@127.0.0.1:1/app"}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "connect to PostgreSQL")
	assert.NotContains(t, err.Error(), "hunter2")

	cfg := clickhouse.Config{Host: "127.0.0.1", Port: 1, Database: "d", EventLogTable: "e", DeadLetterTable: "l", Password: "hunter2"}
	err = migrations.UpClickHouse(t.Context(), cfg, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "connect to ClickHouse at 127.0.0.1:1")
	assert.NotContains(t, err.Error(), "hunter2")

	cfg.EventLogTable = "event_log` (x UInt8) ENGINE = Memory --"
	assert.ErrorContains(t, migrations.UpClickHouse(t.Context(), cfg, slog.New(slog.DiscardHandler)),
		"CLICKHOUSE_EVENT_LOG_TABLE_NAME")
}
