package testenv_test

import (
	"context"
	"os/exec"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestEachTestHasDatabasesOfItsOwn(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"one", "two"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			ctx := t.Context()
			var events, publications, rows uint64
			_, err := env.Pool.Exec(ctx, `INSERT INTO outbox (event_type, event_context) VALUES ('tested', '{}')`)
			require.NoError(t, err)
			require.NoError(t, env.Pool.QueryRow(ctx, "SELECT count(*) FROM outbox").Scan(&events))
			assert.EqualValues(t, 1, events)
			require.NoError(t, env.Pool.QueryRow(ctx, "SELECT count(*) FROM pg_publication WHERE pubname = $1", env.Publication).Scan(&publications))
			assert.EqualValues(t, 1, publications)
			require.NoError(t, env.ClickHouse.QueryRow(ctx, "SELECT count() FROM "+env.ClickHouseConfig.EventLogTable).Scan(&rows))
			assert.Zero(t, rows)
		})
	}
}

// What a test leaves behind would fill the disk (a slot keeps WAL) and count
// against the limits of the servers that all tests share.
func TestNothingIsLeftOfATest(t *testing.T) {
	t.Parallel()
	var gone *testenv.Env
	var replication *pgconn.PgConn
	t.Run("a test with an active slot", func(t *testing.T) {
		gone = testenv.New(t)
		_, err := gone.Pool.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", gone.Slot)
		require.NoError(t, err)
		replication, err = pgconn.Connect(t.Context(), gone.PostgresURL+"&replication=database")
		require.NoError(t, err)
		require.NoError(t, pglogrepl.StartReplication(t.Context(), replication, gone.Slot, 0, pglogrepl.StartReplicationOptions{
			PluginArgs: []string{"proto_version '1'", "publication_names '" + gone.Publication + "'"},
		}))
	})
	require.NoError(t, replication.Close(context.WithoutCancel(t.Context())))

	env := testenv.New(t)
	var slots, databases, tables uint64
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", gone.Slot).Scan(&slots))
	assert.Zero(t, slots)
	name := gone.ClickHouseConfig.Database
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_database WHERE datname = $1", name).Scan(&databases))
	assert.Zero(t, databases)
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM system.databases WHERE name = ?", name).Scan(&tables))
	assert.Zero(t, tables)
}

func TestProgramsRunInTheEnvironment(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	streamer := exec.CommandContext(t.Context(), testenv.Build(t, "streamer"), "migrate", "status")
	streamer.Env = env.Environ()
	out, err := streamer.CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Contains(t, string(out), "outbox")
	assert.NotContains(t, string(out), "pending", "the databases are migrated")
}
