package e2e

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

// The embedded engines come without pg_upgrade and pg_dump. So what these do to slots and
// the catalog is done by hand, on a real pair of versions: a new cluster with a system
// identifier of its own, on timeline 1, whose WAL begins behind that of the old one; the
// rows; objects with other oids and xmin; from 17 on the slots, created at the WAL's end.
// Whether pg_upgrade would accept the old cluster is asked with its own function.

// serverOf gives t a migrated server of a version, beside the ClickHouse of env.
func serverOf(t testing.TB, env testenv.Env, version string) (*testenv.Env, *embedded.Postgres) {
	t.Helper()
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "diehard", Version: version})
	env.PostgresURL = engine.URL("diehard")
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: env.PostgresURL}, slog.New(slog.DiscardHandler)))
	env.Pool = testenv.Pool(t, env.PostgresURL, 4)
	return &env, engine
}

// copyTables copies rows from one server to another.
func copyTables(t testing.TB, from, to *testenv.Env, tables ...string) {
	t.Helper()
	source, err := from.Pool.Acquire(t.Context())
	require.NoError(t, err)
	defer source.Release()
	target, err := to.Pool.Acquire(t.Context())
	require.NoError(t, err)
	defer target.Release()
	for _, table := range tables {
		var rows bytes.Buffer
		_, err := source.Conn().PgConn().CopyTo(t.Context(), &rows, "COPY (SELECT * FROM "+table+") TO STDOUT")
		require.NoError(t, err)
		_, err = target.Conn().PgConn().CopyFrom(t.Context(), &rows, "COPY "+table+" FROM STDIN")
		require.NoError(t, err)
	}
}

// upgraded is what pg_upgrade makes of old: slots are migrated from 17 on.
func upgraded(t testing.TB, old *testenv.Env, version string, slots bool) *testenv.Env {
	t.Helper()
	end := walEnd(t, old)
	env, _ := serverOf(t, *old, version)
	copyTables(t, old, env, "outbox", "diehard_slot", "diehard_intent")
	for walEnd(t, env) <= end {
		execute(t, env, "SELECT pg_logical_emit_message(false, 'x', 'x')")
		execute(t, env, "SELECT pg_switch_wal()")
	}
	if slots {
		execute(t, env, "SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)", env.Slot)
	}
	return env
}

// hasty shortens the wait for inserts of the server before.
func hasty(c *setup) { c.InsertTimeout = 2 * time.Second }

// The runbook of streamer/README.md, "Upgrading PostgreSQL", from 17 on: the slot goes with
// the server, and a streamer that runs all the while goes on by itself.
func TestPgUpgradeWithAMigratedSlot(t *testing.T) {
	t.Parallel()
	old, engine := serverOf(t, *newEnv(t), "17")
	n := newNetwork(t, fmt.Sprintf("127.0.0.1:%d", engine.Port()))
	s := start(t, old, hasty)
	publish(t, old, 7)
	delivered(t, old)
	s.stop()
	publish(t, old, 2)
	refused := runArgs(t, old, "streamer", []string{"slot", "finish"})
	require.NotZero(t, refused.exit())
	assert.Contains(t, refused.log.text(), "events wait in slot")
	through := func(c *setup) {
		hasty(c)
		c.PostgresURL = routed(t, old.PostgresURL, n)
	}
	s = start(t, old, through)
	delivered(t, old)
	confirmedPast(t, old)
	n.cut() // stands for a streamer that is left running while the servers are exchanged
	slotCommand(t, old, "finish")
	require.NoError(t, engine.Stop(t.Context()))
	old.Pool.Reset()
	require.NoError(t, engine.StartForUpgrade(t.Context()))
	var caughtUp bool
	require.NoError(t, old.Pool.QueryRow(t.Context(), "SELECT pg_catalog.binary_upgrade_logical_slot_has_caught_up($1)", old.Slot).Scan(&caughtUp))
	assert.True(t, caughtUp, "pg_upgrade accepts the slot")

	env := upgraded(t, old, "18", true)
	samePasswordOf(t, old, env)
	n.restore()
	n.leadTo(hostOf(t, env))
	publish(t, env, 5)
	assert.Equal(t, 14, delivered(t, env))
	assert.Contains(t, s.log.text(), "the server was upgraded")
	awaitProved(t, env)
	s.stop()
	assert.Equal(t, 14, count(t, env, "count()", ""))
	assert.Equal(t, 2, count(t, env, "uniqExact(source)", ""))
	assert.Equal(t, outboxIDsInOrder(t, env), logIDsInOrder(t, env), "one order across both servers")
}

// From 14 to 16 pg_upgrade leaves the slot behind: a new one is created before producers
// come back, or else the table gives what came before it.
func TestPgUpgradeWithoutSlots(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprintf("producers before the slot %t", early), func(t *testing.T) {
			t.Parallel()
			old, engine := serverOf(t, *newEnv(t), "16")
			s := start(t, old, hasty)
			publish(t, old, 7)
			delivered(t, old)
			s.stop()
			slotCommand(t, old, "finish")
			env := upgraded(t, old, "18", false)
			require.NoError(t, engine.Stop(t.Context()))
			missing := 0
			if early {
				missing = 4
				publish(t, env, missing)
			}
			says(t, launch(t, env, hasty).refusal(), "is gone", "streamer slot create", "streamer replay --from-table")
			slotCommand(t, env, "create")
			s = start(t, env, hasty)
			publish(t, env, 5)
			replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
			require.Zero(t, replay.exit(), replay.log.text())
			assert.Contains(t, replay.log.text(), fmt.Sprintf("%d were missing", missing))
			assert.Equal(t, 12+missing, delivered(t, env))
			s.stop()
		})
	}
}

// Blue/green by logical replication: a subscription writes the outbox on the new server,
// where a slot sees those rows as it sees any other.
func TestLogicalBlueGreen(t *testing.T) {
	t.Parallel()
	for _, slotFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("slot before the switch %t", slotFirst), func(t *testing.T) {
			t.Parallel()
			blue, engine := serverOf(t, *newEnv(t), "16")
			s := start(t, blue, hasty)
			publish(t, blue, 5)
			delivered(t, blue)
			green, _ := serverOf(t, *blue, "18")
			execute(t, blue, "CREATE PUBLICATION blue_green FOR TABLE outbox WITH (publish_via_partition_root = true)")
			execute(t, green, fmt.Sprintf("CREATE SUBSCRIPTION blue_green CONNECTION '%s' PUBLICATION blue_green", blue.PostgresURL))
			more := []string{}
			if slotFirst { // what the subscription writes is the other streamer's
				green.Slot += "_green"
				more = append(more, "REPLICATION_ORIGIN=none")
				run(t, green, "streamer", more...).says("streaming")
			}
			publish(t, blue, 5) // by subscription and by the old streamer
			await.True(t, func() bool { return len(outboxIDs(t, green)) == 10 }, "the subscription does not catch up")
			delivered(t, blue)
			s.stop()
			execute(t, green, "DROP SUBSCRIPTION blue_green")
			require.NoError(t, engine.Stop(t.Context()))
			if !slotFirst {
				run(t, green, "streamer", more...).says("streaming")
			}
			publish(t, green, 3)
			assert.Equal(t, 13, delivered(t, green))
			replay := runArgs(t, green, "streamer", []string{"replay", "--from-table"}, more...)
			require.Zero(t, replay.exit(), replay.log.text())
			assert.Contains(t, replay.log.text(), "0 were missing")
			assert.Equal(t, 13, count(t, green, "count()", ""))
		})
	}
}

func hostOf(t testing.TB, env *testenv.Env) string {
	t.Helper()
	address, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	return address.Host
}

// routed is an address of PostgreSQL that leads through n.
func routed(t testing.TB, postgresURL string, n *network) string {
	t.Helper()
	address, err := url.Parse(postgresURL)
	require.NoError(t, err)
	address.Host = n.proxy.Listen
	return address.String()
}

// samePasswordOf gives the superuser of to the password of from, as pg_upgrade does.
func samePasswordOf(t testing.TB, from, to *testenv.Env) {
	t.Helper()
	address, err := url.Parse(from.PostgresURL)
	require.NoError(t, err)
	password, _ := address.User.Password()
	execute(t, to, "ALTER ROLE postgres PASSWORD '"+password+"'")
}

// outboxIDsInOrder are the ids in the order of their publication, which tests do one after the other.
func outboxIDsInOrder(t testing.TB, env *testenv.Env) (ids []string) {
	t.Helper()
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT array_agg(id::text ORDER BY published_at, event_date_time) FROM outbox").Scan(&ids))
	return ids
}

func logIDsInOrder(t testing.TB, env *testenv.Env) (ids []string) {
	t.Helper()
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT arrayMap(x -> toString(x.3), arraySort(groupArray((commit_lsn, commit_seq, event_id)))) FROM "+env.ClickHouseConfig.EventLogTable).Scan(&ids))
	return ids
}
