package e2e

import (
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/embedded"
	"diehard/shared/testenv"
)

var (
	cure   = regexp.MustCompile(`run (ALTER PUBLICATION .*)$`)
	anew   = []string{"streamer slot drop", "streamer slot create", "streamer replay --from-table"}
	rename = []string{"streamer slot drop", "REPLICATION_SLOT", "streamer replay --from-table"}
	create = `CREATE PUBLICATION outbox_pub FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)`
)

// The statement that the refusal gives mends the publication. What it did not send
// meanwhile is known to be missing, and the table has it.
func TestRefusalsOfAPublication(t *testing.T) {
	t.Parallel()
	for spoil, problem := range map[string]string{
		"SET (publish = 'insert, update')":         "inserts and nothing else",
		"SET (publish = 'insert, truncate')":       "inserts and nothing else",
		"SET (publish = 'delete')":                 "inserts and nothing else",
		"SET (publish_via_partition_root = false)": "partition root",
		"ADD TABLE users":                          "alone and holds",
		"SET TABLE users":                          "holds users",
	} {
		t.Run(spoil, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			start(t, env).stop()
			execute(t, env, "ALTER PUBLICATION outbox_pub "+spoil)
			publish(t, env, 3)
			err := launch(t, env).refusal()
			require.ErrorContains(t, err, problem)
			statement := cure.FindStringSubmatch(err.Error())
			require.NotNil(t, statement, "%v", err)
			execute(t, env, statement[1])
			if spoil != "ADD TABLE users" { // which kept nothing of the outbox back
				says(t, launch(t, env).refusal(), append(anew, "changed")...)
				anewByCommand(t, env)
			}
			start(t, env)
			publish(t, env, 5)
			replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
			require.Zero(t, replay.exit(), replay.log.text())
			assert.Equal(t, 8, delivered(t, env))
		})
	}
}

func TestRefusalOfAMissingPublication(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	execute(t, env, "DROP PUBLICATION outbox_pub")
	err := launch(t, env).refusal()
	require.ErrorContains(t, err, "is missing")
	require.ErrorContains(t, err, "CREATE PUBLICATION")
	assert.Zero(t, slots(t, env), "no slot before the publication")
	execute(t, env, create)
	start(t, env)
	publish(t, env, 5)
	delivered(t, env)
}

func slots(t testing.TB, env *testenv.Env) int {
	t.Helper()
	var n int
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", env.Slot).Scan(&n))
	return n
}

// What was committed between the two publications was not sent: it must not be
// acknowledged in silence.
func TestRefusalOfARecreatedPublication(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env).stop()
	execute(t, env, "DROP PUBLICATION outbox_pub")
	publish(t, env, 5)
	execute(t, env, create)
	before := slotLSN(t, env, "confirmed_flush_lsn")
	says(t, launch(t, env).refusal(), append(anew, "dropped, recreated or changed")...)
	assert.Equal(t, before, slotLSN(t, env, "confirmed_flush_lsn"))

	anewByCommand(t, env)
	start(t, env)
	execute(t, env, "DELETE FROM outbox")
	publish(t, env, 5)
	delivered(t, env)
}

func TestRefusalOfAPublicationRecreatedWhileRunning(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := delivering(t, env, 5)
	execute(t, env, "DROP PUBLICATION outbox_pub")
	trickle(t, env, 5)
	execute(t, env, create)
	trickle(t, env, 5)
	refusal := s.refusal()
	says(t, refusal, anew...)
	assert.NotContains(t, refusal.Error(), "cannot verify", "the cause and the cure only")
}

// Nothing arrives that could be checked: only a position, which must not be confirmed.
func TestRefusalOfAPublicationThatSendsNothing(t *testing.T) {
	t.Parallel()
	for name, change := range map[string][]string{
		"dropped":                  {"DROP PUBLICATION outbox_pub"},
		"changed":                  {"ALTER PUBLICATION outbox_pub SET TABLE users"},
		"changed and changed back": {"ALTER PUBLICATION outbox_pub SET TABLE users", "ALTER PUBLICATION outbox_pub SET TABLE outbox"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			s := delivering(t, env, 5)
			execute(t, env, change[0])
			var lost string
			require.NoError(t, env.Pool.QueryRow(t.Context(), `WITH e AS (INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}'))
				SELECT pg_current_wal_insert_lsn()::text`).Scan(&lost))
			for _, statement := range change[1:] {
				execute(t, env, statement)
			}
			refusal := s.refusal()
			says(t, refusal, anew...)
			assert.NotContains(t, refusal.Error(), "cannot verify", "the cause and the cure only")
			at, err := pglogrepl.ParseLSN(lost)
			require.NoError(t, err)
			assert.Less(t, slotLSN(t, env, "confirmed_flush_lsn"), at, "the row that was not sent is not acknowledged")
		})
	}
}

func TestRefusalOfAnotherTableWhileRunning(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env)
	execute(t, env, "ALTER PUBLICATION outbox_pub ADD TABLE users")
	execute(t, env, "INSERT INTO users (email, first_name, last_name) VALUES ('a@example.com', 'A', 'B')")
	err := s.refusal()
	if strings.Contains(err.Error(), "changed") { // noticed before the row was read
		says(t, err, anew...)
		return
	}
	says(t, err, "users", "SET TABLE outbox")
}

func TestRefusalOfASlotThatIsGone(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env).stop()
	execute(t, env, "SELECT pg_drop_replication_slot($1)", env.Slot)
	says(t, launch(t, env).refusal(), "is gone", "streamer slot create", "streamer replay --from-table")
	assert.Zero(t, slots(t, env), "a lost place is not replaced in silence")
	anewByCommand(t, env)
	start(t, env)
	publish(t, env, 5)
	delivered(t, env)
}

// anewByCommand makes the slot anew as the refusals say.
func anewByCommand(t testing.TB, env *testenv.Env) {
	t.Helper()
	for _, verb := range []string{"drop", "create"} {
		p := runArgs(t, env, "streamer", []string{"slot", verb})
		require.Zero(t, p.exit(), "slot %s", verb)
	}
}

func TestRefusalOfASlotThatIsNotOurs(t *testing.T) {
	t.Parallel()
	env, other := newEnv(t), newEnv(t)
	_, err := other.Pool.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
	require.NoError(t, err)
	says(t, launch(t, env).refusal(), "belongs to database", "REPLICATION_SLOT")

	_, err = other.Pool.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", env.Slot)
	require.NoError(t, err)
	execute(t, env, "SELECT pg_create_physical_replication_slot($1)", env.Slot)
	err = launch(t, env).refusal()
	execute(t, env, "SELECT pg_drop_replication_slot($1)", env.Slot) // it belongs to no database, so nobody else would
	says(t, err, "not pgoutput", "REPLICATION_SLOT")
}

// PostgreSQL has removed WAL that the slot needed.
func TestRefusalOfASlotThatIsLost(t *testing.T) {
	t.Parallel()
	env, _ := ownPostgres(t, map[string]string{"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"})
	start(t, env).stop()
	execute(t, env, "CREATE TABLE noise (v text)")
	eventually(t, func() bool {
		for range 3 {
			execute(t, env, "INSERT INTO noise VALUES ('x')")
			execute(t, env, "SELECT pg_switch_wal()")
		}
		execute(t, env, "CHECKPOINT")
		var status string
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT wal_status FROM pg_replication_slots").Scan(&status))
		return status == "lost"
	}, "the slot is not lost")
	says(t, launch(t, env).refusal(), append(anew, "is lost", "max_slot_wal_keep_size")...)
	anewByCommand(t, env)
	start(t, env)
	publish(t, env, 5)
	delivered(t, env)
}

func TestRefusalOfAWALLevel(t *testing.T) {
	t.Parallel()
	env, _ := ownPostgres(t, map[string]string{"wal_level": "replica"})
	says(t, launch(t, env).refusal(), "wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'")
}

// The server ends before what has landed: a backup was restored.
func TestRefusalOfAServerThatIsBehind(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := delivering(t, env, 5)
	s.stop()
	command(t, env, "INSERT INTO LOG SELECT * REPLACE (commit_lsn + 1099511627776 AS commit_lsn) FROM LOG")
	publish(t, env, 7)
	says(t, launch(t, env).refusal(), append(rename, "restored from a backup")...)

	command(t, env, "ALTER TABLE LOG DELETE WHERE commit_lsn < 1099511627776 SETTINGS mutations_sync = 2")
	require.Zero(t, runArgs(t, env, "streamer", []string{"slot", "drop"}).exit())
	env.Slot += "_2"
	start(t, env)
	publish(t, env, 5)
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "7 were missing, 7 of them are filled now")
	delivered(t, env)
}

// The same, noticed late: meanwhile the WAL has grown beyond what has landed, with
// other events in the places of those that were lost.
func TestRefusalOfAServerThatHasCaughtUp(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := delivering(t, env, 5)
	s.stop()
	var lost uint64
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint + 1").Scan(&lost))
	command(t, env, fmt.Sprintf("INSERT INTO LOG SELECT * REPLACE (toUInt64(%d) AS commit_lsn) FROM LOG LIMIT 1", lost))
	publish(t, env, 50)
	says(t, launch(t, env).refusal(), append(rename, "does not know a transaction", "restored from a backup")...)
}

// A promotion goes on where the old server stopped; rows of a timeline that the
// server has left before them are rows it does not know.
func TestATimelineOfAnotherServer(t *testing.T) {
	t.Parallel()
	env, engine := ownPostgres(t, nil)
	s := delivering(t, env, 5)
	promote(t, env, engine)
	publish(t, env, 5)
	delivered(t, env)
	assert.Equal(t, 2, count(t, env, "max(timeline)", ""))
	s.stop()

	// The predecessor had landed more of timeline 1 than this server has ever had.
	command(t, env, "INSERT INTO LOG SELECT * REPLACE (1 AS timeline) FROM (SELECT * FROM LOG ORDER BY commit_lsn DESC LIMIT 1)")
	command(t, env, "ALTER TABLE LOG DELETE WHERE timeline = 2 SETTINGS mutations_sync = 2")
	says(t, launch(t, env).refusal(), append(rename, "of timeline 1", "lost in a failover")...)

	// The server never was on the timeline of what has landed.
	command(t, env, "INSERT INTO LOG SELECT * REPLACE (3 AS timeline) FROM (SELECT * FROM LOG ORDER BY commit_lsn DESC LIMIT 1)")
	says(t, launch(t, env).refusal(), append(rename, "of timeline 3")...)
}

// The opposite: a promoted server has landed rows, and the old one is back in its place.
func TestRefusalOfAServerThatWasReplaced(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := delivering(t, env, 5)
	s.stop()
	command(t, env, "INSERT INTO LOG SELECT * REPLACE (2 AS timeline, commit_lsn + 1 AS commit_lsn) FROM LOG")
	says(t, launch(t, env).refusal(), append(rename, "of timeline 2")...)
}

// While we look away the address comes to mean another server.
func TestRefusalOfAnotherServerBehindTheAddress(t *testing.T) {
	t.Parallel()
	env, one := ownPostgres(t, nil)
	two := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "diehard"})
	require.NoError(t, migrations.UpPostgres(t.Context(), two.URL("diehard"), slog.New(slog.DiscardHandler)))
	n, through := toPostgres(t, env)
	s := start(t, env, through)
	publish(t, env, 5)
	delivered(t, env)
	n.leadTo(fmt.Sprintf("127.0.0.1:%d", two.Port()))
	says(t, s.refusal(), "another server", "DATABASE_URL")
	n.leadTo(fmt.Sprintf("127.0.0.1:%d", one.Port()))
	start(t, env, through)
	publish(t, env, 5)
	delivered(t, env)
}

// promote makes the server a standby of nobody and promotes it, which begins timeline 2.
func promote(t testing.TB, env *testenv.Env, engine *embedded.Postgres) {
	t.Helper()
	var dir string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SHOW data_directory").Scan(&dir))
	require.NoError(t, engine.Stop(t.Context()))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o644))
	require.NoError(t, os.Chmod(dir, 0o750))
	require.NoError(t, engine.Start(t.Context()))
	env.Pool.Reset()
	execute(t, env, "SELECT pg_promote()")
}

func TestRefusalsOfClickHouse(t *testing.T) {
	t.Parallel()
	for spoil, texts := range map[string][]string{
		"RENAME TABLE LOG TO away":                                           {"streamer migrate up", "CLICKHOUSE_EVENT_LOG_TABLE_NAME"},
		"DROP TABLE LOG":                                                     {"streamer migrate up", "CLICKHOUSE_EVENT_LOG_TABLE_NAME"},
		"ALTER TABLE LOG DROP COLUMN timeline":                               {"not ours", "timeline"},
		"ALTER TABLE LOG MODIFY COLUMN environment String":                   {"not ours", "environment"},
		"ALTER TABLE LOG RENAME COLUMN metadata_version TO version":          {"not ours", "metadata_version"},
		"ALTER TABLE LOG MODIFY COLUMN event_context LowCardinality(String)": {"not ours", "event_context"},
		"DROP TABLE event_dead_letter":                                       {"streamer migrate up", "event_dead_letter"},
	} {
		t.Run(spoil, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			if spoil == "ALTER TABLE LOG DROP COLUMN timeline" {
				command(t, env, "ALTER TABLE LOG DROP PROJECTION p_resume")
			}
			command(t, env, spoil)
			says(t, launch(t, env).refusal(), texts...)
		})
	}
}

// The same refusals when it happens while rows flow: nothing is confirmed, and
// after the cure everything arrives.
func TestTheTableGoesAwayWhileRunning(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := delivering(t, env, 5)
	command(t, env, "RENAME TABLE LOG TO away")
	publish(t, env, 5)
	says(t, s.refusal(), "streamer migrate up", "CLICKHOUSE_EVENT_LOG_TABLE_NAME")
	assert.Equal(t, 5, pending(t, env), "rows that are still to be delivered")
	command(t, env, "RENAME TABLE away TO LOG")
	start(t, env)
	delivered(t, env)
}

func TestRefusalsOfCredentials(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	as := func(user string) func(*setup) {
		return func(c *setup) {
			address, err := url.Parse(c.PostgresURL)
			require.NoError(t, err)
			address.User = url.UserPassword(user, "secret")
			c.PostgresURL = address.String()
		}
	}
	says(t, launch(t, env, as("nobody")).refusal(), `role "nobody" does not exist`)
	execute(t, env, fmt.Sprintf("CREATE ROLE %s LOGIN IN ROLE diehard_api", env.Slot))
	err := launch(t, env, as(env.Slot)).refusal()
	execute(t, env, fmt.Sprintf("DROP ROLE %s", env.Slot))
	says(t, err, "REPLICATION")
	says(t, launch(t, env, func(c *setup) { c.ClickHouse.Database = "nowhere" }).refusal(), "CLICKHOUSE_SCHEMA")
	start(t, env).stop()
	publish(t, env, 1)
	says(t, launch(t, env, func(c *setup) { c.Settings = map[string]any{"readonly": 1} }).refusal(), "READONLY", "may only read")
}

// says demands that an error contains all of texts, and no secret.
func says(t testing.TB, err error, texts ...string) {
	t.Helper()
	for _, text := range texts {
		assert.ErrorContains(t, err, text)
	}
	assert.NotContains(t, err.Error(), "secret")
}
