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
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

var (
	fix    = regexp.MustCompile(`run (ALTER PUBLICATION .*)$`)
	accept = []string{"did not send them", "streamer slot accept", "streamer replay --from-table"}
	anew   = []string{"streamer slot drop", "streamer slot create", "streamer replay --from-table"}
	rename = []string{"streamer slot drop", "REPLICATION_SLOT", "streamer replay --from-table"}
	create = `CREATE PUBLICATION outbox_pub FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)`
)

// The statement that the refusal gives fixes the publication. What it did not send
// meanwhile is found to be missing, and the table has it; if it has sent everything, the
// streamer proves that and goes on.
func TestRefusalsOfAPublication(t *testing.T) {
	t.Parallel()
	for spoil, is := range map[string]struct {
		problem string
		kept    bool // events back
	}{
		"SET (publish = 'insert, update')":         {"inserts and nothing else", false},
		"SET (publish = 'insert, truncate')":       {"inserts and nothing else", false},
		"SET (publish = 'delete')":                 {"inserts and nothing else", true},
		"SET (publish_via_partition_root = false)": {"partition root", false},
		"ADD TABLE users":                          {"alone and holds", false},
		"SET TABLE users":                          {"holds public.users", true},
	} {
		t.Run(spoil, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			start(t, env).stop()
			execute(t, env, "ALTER PUBLICATION outbox_pub "+spoil)
			publish(t, env, 3)
			err := launch(t, env).refusal()
			require.ErrorContains(t, err, is.problem)
			statement := fix.FindStringSubmatch(err.Error())
			require.NotNil(t, statement, "%v", err)
			execute(t, env, statement[1])
			filled := "0 were missing"
			if is.kept {
				says(t, launch(t, env).refusal(), accept...)
				slotCommand(t, env, "accept")
				filled = "3 were missing, 3 of them are filled now"
			}
			start(t, env)
			publish(t, env, 5)
			replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
			require.Zero(t, replay.exit(), replay.log.text())
			assert.Contains(t, replay.log.text(), filled)
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
// acknowledged in silence. Before PostgreSQL 18 the server itself refuses to go on from there.
func TestRefusalOfARecreatedPublication(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env).stop()
	execute(t, env, "DROP PUBLICATION outbox_pub")
	publish(t, env, 5)
	execute(t, env, create)
	before := slotLSN(t, env, "confirmed_flush_lsn")
	refusal := launch(t, env).refusal()
	assert.Equal(t, before, slotLSN(t, env, "confirmed_flush_lsn"))
	if serverVersion(t, env) >= 180000 {
		says(t, refusal, accept...)
		slotCommand(t, env, "accept")
	} else {
		says(t, refusal, anew...)
		anewByCommand(t, env)
	}
	start(t, env)
	publish(t, env, 5)
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "5 were missing, 5 of them are filled now")
	delivered(t, env)
}

func serverVersion(t testing.TB, env *testenv.Env) (n int) {
	t.Helper()
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int").Scan(&n))
	return n
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
	if strings.Contains(refusal.Error(), "is missing") { // noticed before it was created again
		refusal = launch(t, env).refusal()
	}
	says(t, refusal, "streamer replay --from-table")
	assert.NotContains(t, refusal.Error(), "cannot verify", "the cause and the fix only")
}

// Nothing arrives that could be checked: only a position, which must not be confirmed.
func TestRefusalOfAPublicationThatSendsNothing(t *testing.T) {
	t.Parallel()
	for name, is := range map[string]struct{ change, says []string }{
		"dropped":                  {[]string{"DROP PUBLICATION outbox_pub"}, []string{"outbox_pub"}}, // or, before PostgreSQL 18, in the words of the server
		"changed":                  {[]string{"ALTER PUBLICATION outbox_pub SET TABLE users"}, []string{"SET TABLE public.outbox"}},
		"changed and changed back": {[]string{"ALTER PUBLICATION outbox_pub SET TABLE users", "ALTER PUBLICATION outbox_pub SET TABLE outbox"}, accept},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			s := delivering(t, env, 5)
			execute(t, env, is.change[0])
			var lost string
			require.NoError(t, env.Pool.QueryRow(t.Context(), `WITH e AS (INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}'))
				SELECT pg_current_wal_insert_lsn()::text`).Scan(&lost))
			for _, statement := range is.change[1:] {
				execute(t, env, statement)
			}
			refusal := s.refusal()
			if len(is.change) > 1 && !strings.Contains(refusal.Error(), "did not send them") { // noticed between the two
				refusal = launch(t, env).refusal()
			}
			says(t, refusal, is.says...)
			assert.NotContains(t, refusal.Error(), "cannot verify", "the cause and the fix only")
			at, err := pglogrepl.ParseLSN(lost)
			require.NoError(t, err)
			assert.Less(t, slotLSN(t, env, "confirmed_flush_lsn"), at, "the row that was not sent is not acknowledged")
		})
	}
}

// What changes the publication's rows in the catalog, and not what it does, ends nothing:
// the streamer proves that everything was sent and goes on. Its slot keeps its position.
func TestChangesOfAPublicationThatChangeNothing(t *testing.T) {
	t.Parallel()
	for name, change := range map[string][]string{
		"no-op":                         {"ALTER PUBLICATION outbox_pub SET (publish = 'insert')"},
		"the same table":                {"ALTER PUBLICATION outbox_pub SET TABLE outbox"},
		"another owner":                 {"CREATE ROLE SLOT", "ALTER PUBLICATION outbox_pub OWNER TO SLOT", "ALTER PUBLICATION outbox_pub OWNER TO CURRENT_USER", "DROP ROLE SLOT"},
		"renamed and back":              {"ALTER PUBLICATION outbox_pub RENAME TO away", "ALTER PUBLICATION away RENAME TO outbox_pub"},
		"updates for a moment":          {"ALTER PUBLICATION outbox_pub SET (publish = 'insert, update')", "ALTER PUBLICATION outbox_pub SET (publish = 'insert')"},
		"another table beside":          {"ALTER PUBLICATION outbox_pub ADD TABLE users", "ALTER PUBLICATION outbox_pub SET TABLE outbox"},
		"without the root for a moment": {"ALTER PUBLICATION outbox_pub SET (publish_via_partition_root = false)", "INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')", "ALTER PUBLICATION outbox_pub SET (publish_via_partition_root = true)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			s := delivering(t, env, 5)
			apply := func() {
				tx, err := env.Pool.Begin(t.Context())
				require.NoError(t, err)
				for _, statement := range change {
					_, err := tx.Exec(t.Context(), strings.ReplaceAll(statement, "SLOT", env.Slot))
					require.NoError(t, err)
				}
				require.NoError(t, tx.Commit(t.Context()))
			}
			apply()
			publish(t, env, 5)
			delivered(t, env)
			awaitProved(t, env)
			s.stop()

			before := slotLSN(t, env, "confirmed_flush_lsn")
			publish(t, env, 5) // waits in the slot
			apply()
			s = start(t, env)
			publish(t, env, 5)
			delivered(t, env)
			awaitProved(t, env)
			s.stop()
			assert.Greater(t, slotLSN(t, env, "confirmed_flush_lsn"), before)
			if unseen := name == "the same table" || name == "another table beside"; !unseen { // the catalog's rows are the same
				assert.Contains(t, s.log.text(), "all events that were compared are in ClickHouse")
			}
		})
	}
}

// awaitProved waits until nothing is to be proved.
func awaitProved(t testing.TB, env *testenv.Env) {
	t.Helper()
	await.True(t, func() bool {
		var proved bool
		require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT unproved_since IS NULL FROM diehard_intent`).Scan(&proved))
		return proved
	}, "the comparison never ends")
}

// The slot's messages survive a publication that did not send rows: the table gives the rows
// back, and nothing but the slot has the messages.
func TestMessagesWaitInASlotWhosePublicationWasChanged(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env, withMessages).stop()
	execute(t, env, kind(message, "before"))
	execute(t, env, "ALTER PUBLICATION outbox_pub SET TABLE users")
	publish(t, env, 4)
	execute(t, env, "ALTER PUBLICATION outbox_pub SET TABLE outbox")
	execute(t, env, kind(message, "behind"))
	says(t, launch(t, env, withMessages).refusal(), accept...)
	slotCommand(t, env, "accept")
	start(t, env, withMessages)
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "4 were missing, 4 of them are filled now")
	awaitRows(t, env, 6)
	assert.Equal(t, 6, count(t, env, "uniqExact(event_id)", ""))
}

func TestRefusalOfAnotherTableWhileRunning(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env)
	execute(t, env, "ALTER PUBLICATION outbox_pub ADD TABLE users")
	execute(t, env, "INSERT INTO users (email, first_name, last_name) VALUES ('a@example.com', 'A', 'B')")
	says(t, s.refusal(), "users", "SET TABLE") // whether the row or the publication was read first
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
	slotCommand(t, env, "drop")
	slotCommand(t, env, "create")
}

// slotCommand runs `streamer slot …` once the slot is free.
func slotCommand(t testing.TB, env *testenv.Env, verb string) string {
	t.Helper()
	awaitFree(t, env)
	p := runArgs(t, env, "streamer", []string{"slot", verb})
	require.Zero(t, p.exit(), p.log.text())
	return p.log.text()
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
	execute(t, env, "SELECT pg_drop_replication_slot($1)", env.Slot) // it belongs to no database, so nothing else would
	says(t, err, "not pgoutput", "REPLICATION_SLOT")
}

// PostgreSQL has removed WAL that the slot needed.
func TestRefusalOfASlotThatIsLost(t *testing.T) {
	t.Parallel()
	env, _ := ownPostgres(t, map[string]string{"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"})
	start(t, env).stop()
	execute(t, env, "CREATE TABLE noise (v text)")
	await.True(t, func() bool {
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

// The server ends before what is written: a backup was restored.
func TestRefusalOfAServerThatIsBehind(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := delivering(t, env, 5)
	s.stop()
	command(t, env, "INSERT INTO LOG SELECT * REPLACE (commit_lsn + 1099511627776 AS commit_lsn) FROM LOG")
	publish(t, env, 7)
	says(t, launch(t, env).refusal(), append(rename, "restored from a backup")...)

	command(t, env, "ALTER TABLE LOG DELETE WHERE commit_lsn < 1099511627776 SETTINGS mutations_sync = 2")
	slotCommand(t, env, "drop")
	env.Slot += "_2"
	start(t, env)
	publish(t, env, 5)
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "7 were missing, 7 of them are filled now")
	delivered(t, env)
}

// The same, noticed late: meanwhile the WAL has grown beyond what is written, with
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
	says(t, launch(t, env).refusal(), append(rename, "PostgreSQL knows of none behind", "restored from a backup")...)
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

	// The predecessor had written more of timeline 1 than this server has ever had.
	command(t, env, "INSERT INTO LOG SELECT * REPLACE (1 AS timeline) FROM (SELECT * FROM LOG ORDER BY commit_lsn DESC LIMIT 1)")
	command(t, env, "ALTER TABLE LOG DELETE WHERE timeline = 2 SETTINGS mutations_sync = 2")
	says(t, launch(t, env).refusal(), append(rename, "of timeline 1", "lost in a failover")...)

	// The server never was on the timeline of what is written.
	command(t, env, "INSERT INTO LOG SELECT * REPLACE (3 AS timeline) FROM (SELECT * FROM LOG ORDER BY commit_lsn DESC LIMIT 1)")
	says(t, launch(t, env).refusal(), append(rename, "of timeline 3")...)
}

// The opposite: a promoted server's rows are written, and the old one is back in its place.
func TestRefusalOfAServerThatWasReplaced(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := delivering(t, env, 5)
	s.stop()
	command(t, env, "INSERT INTO LOG SELECT * REPLACE (2 AS timeline, commit_lsn + 1 AS commit_lsn) FROM LOG")
	says(t, launch(t, env).refusal(), append(rename, "of timeline 2")...)
}

// samePassword gives the superuser of two the password of one.
func samePassword(t *testing.T, one, two *embedded.Postgres) {
	t.Helper()
	password, err := embedded.Password(one.DataDir())
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), two.URL("postgres"))
	require.NoError(t, err)
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), "ALTER ROLE postgres PASSWORD '"+password+"'")
	require.NoError(t, err)
}

// While we look away the address comes to mean another server.
func TestRefusalOfAnotherServerBehindTheAddress(t *testing.T) {
	t.Parallel()
	env, one := ownPostgres(t, nil)
	two := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "diehard"})
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: two.URL("diehard")}, slog.New(slog.DiscardHandler)))
	samePassword(t, one, two)
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

// promote makes the server a standby without a primary and promotes it, which begins timeline 2.
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
				command(t, env, "ALTER TABLE LOG DROP PROJECTION p_position")
			}
			command(t, env, spoil)
			says(t, launch(t, env).refusal(), texts...)
		})
	}
}

// The same refusals when it happens while rows flow: nothing is confirmed, and
// after the fix everything arrives.
func TestTheTableGoesAwayWhileRunning(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := delivering(t, env, 5)
	confirmedPast(t, env)
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
	says(t, launch(t, env, as("nobody")).refusal(), `password authentication failed for user "nobody"`)
	execute(t, env, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'secret' IN ROLE diehard_api", env.Slot))
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
