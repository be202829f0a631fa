package doctor_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/postgres"
	"diehard/shared/testenv"
	"diehard/streamer/doctor"
	"diehard/streamer/ops"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// patient is env as url's user sees it.
func patient(t *testing.T, env *testenv.Env, url string) doctor.Patient {
	t.Helper()
	pool, err := postgres.NewPool(t.Context(), postgres.Config{URL: url, MaxConns: 2}, "doctor")
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return doctor.Patient{PostgresURL: url, ClickHouse: env.ClickHouseConfig, Probe: &ops.Probe{
		Postgres: pool, ClickHouse: env.ClickHouse, Slot: env.Slot, Publication: env.Publication,
		EventLog: env.ClickHouseConfig.EventLogTable, DeadLetter: env.ClickHouseConfig.DeadLetterTable,
	}}
}

// examine returns the finding of one check.
func examine(t *testing.T, p doctor.Patient, where, check string) doctor.Finding {
	t.Helper()
	findings := doctor.Examine(t.Context(), p)
	for _, f := range findings {
		if f.Where == where && f.Check == check {
			return f
		}
	}
	require.Fail(t, "no such finding", "%s %s in %v", where, check, findings)
	return doctor.Finding{}
}

// elsewhere are checks of the servers as a whole, which tests share.
var elsewhere = map[string]bool{
	"durability": true, "slots left": true, "senders left": true, "max_slot_wal_keep_size": true,
	"failover": true, "long transactions": true, "disk": true, "clock": true,
}

func TestFreshDatabasesAreWell(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	execute(t, env, "postgresql", "REVOKE CREATE ON SCHEMA public FROM PUBLIC") // PostgreSQL 14 grants it
	findings := doctor.Examine(t.Context(), patient(t, env, env.PostgresURL))
	assert.Greater(t, len(findings), 25)
	for _, f := range findings {
		if !elsewhere[f.Check] {
			assert.Equalf(t, doctor.OK, f.Level, "%s: %s", f.Check, f.Is)
		}
		assert.NotEmpty(t, f.Is, f.Check)
		assert.Equal(t, f.Level != doctor.OK, f.Mend != "", f.Check)
	}
	var out bytes.Buffer
	require.NoError(t, doctor.WriteText(&out, findings))
	assert.Regexp(t, `(?m)^  ok    publication +outbox_pub sends inserts of the outbox$`, out.String())
}

// What the finding says mends it must mend it, to the letter.
func TestTheMendMends(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		where, check string
		level        doctor.Level
		harm         string
	}{
		{"postgresql", "publication", doctor.Error, "ALTER PUBLICATION outbox_pub SET (publish = 'insert, update')"},
		{"postgresql", "publication", doctor.Error, "ALTER PUBLICATION outbox_pub SET (publish_via_partition_root = false)"},
		{"postgresql", "publication", doctor.Error, "ALTER PUBLICATION outbox_pub ADD TABLE users"},
		{"postgresql", "publication", doctor.Error, "DROP PUBLICATION outbox_pub"},
		{"postgresql", "schema public", doctor.Warning, "GRANT CREATE ON SCHEMA public TO PUBLIC"},
		{"postgresql", "outbox_default", doctor.Warning, "INSERT INTO outbox (event_type, event_context, created_at) VALUES ('t', '{}', now() - interval '30 days')"},
		{"postgresql", "partitions ahead", doctor.Warning, `DO $$ DECLARE p text; BEGIN
			FOR p IN SELECT partition FROM outbox_partitions WHERE starts_at > now() LOOP EXECUTE 'DROP TABLE ' || p; END LOOP; END $$`},
		{"clickhouse", "durability", doctor.Warning, "ALTER TABLE event_log MODIFY SETTING fsync_after_insert = 0"},
		{"clickhouse", "deduplication window", doctor.Warning, "ALTER TABLE event_log MODIFY SETTING non_replicated_deduplication_window = 0"},
		{"clickhouse", "engine", doctor.Warning, "ALTER TABLE event_log DROP PROJECTION p_resume"},
	} {
		t.Run(c.check, func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			p := patient(t, env, env.PostgresURL)
			execute(t, env, c.where, c.harm)
			f := examine(t, p, c.where, c.check)
			require.Equal(t, c.level, f.Level, f.Is)
			execute(t, env, c.where, f.Mend)
			f = examine(t, p, c.where, c.check)
			assert.Equal(t, doctor.OK, f.Level, f.Is)
		})
	}
}

func execute(t *testing.T, env *testenv.Env, where, statements string) {
	t.Helper()
	if where == "postgresql" {
		_, err := env.Pool.Exec(t.Context(), statements)
		require.NoError(t, err, statements)
		return
	}
	for statement := range strings.SplitSeq(statements, ";") {
		require.NoError(t, env.ClickHouse.Exec(t.Context(), statement), statement)
	}
}

func TestWhatIsGoneIsNamed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ where, check, harm, is string }{
		{"postgresql", "outbox columns", "ALTER TABLE outbox RENAME COLUMN event_type TO kind", "event_type is missing"},
		{"postgresql", "outbox columns", "DROP FUNCTION publish_event, publish_events; ALTER TABLE outbox ALTER trace_context TYPE int USING 0", "trace_context is integer, not text or character varying"},
		{"postgresql", "slot", "INSERT INTO streamer_slot (slot_name, publication_oid) SELECT 'SLOT', oid FROM pg_publication", "is gone: events may be missing"},
		{"postgresql", "slot's publication", "INSERT INTO streamer_slot (slot_name, publication_oid) VALUES ('SLOT', 1)", "rows in between were not sent"},
		{"postgresql", "migrations", "DELETE FROM diehard_migrations WHERE version_id = 8", "1 are missing"},
		{"clickhouse", "tables", "DROP TABLE event_dead_letter", "event_dead_letter is missing"},
		{"clickhouse", "tables", "ALTER TABLE event_log DROP COLUMN timeline SETTINGS mutations_sync = 1", "column timeline"},
	} {
		t.Run(c.check, func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			if strings.Contains(c.harm, "timeline") {
				execute(t, env, c.where, "ALTER TABLE event_log DROP PROJECTION p_resume")
			}
			execute(t, env, c.where, strings.ReplaceAll(c.harm, "SLOT", env.Slot))
			f := examine(t, patient(t, env, env.PostgresURL), c.where, c.check)
			assert.Equal(t, doctor.Error, f.Level)
			assert.Contains(t, f.Is, c.is)
		})
	}
}

func TestASlotWithTwoTablesIsTold(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	execute(t, env, "clickhouse", "CREATE TABLE elsewhere AS event_log")
	p := patient(t, env, env.PostgresURL)
	assert.Equal(t, doctor.OK, examine(t, p, "clickhouse", "one table a slot").Level, "it is empty")
	var system string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT system_identifier::text FROM pg_control_system()").Scan(&system))
	execute(t, env, "clickhouse", "INSERT INTO elsewhere (source, commit_lsn, commit_seq) VALUES ('"+system+"/"+env.Slot+"', 1, 1)")
	f := examine(t, p, "clickhouse", "one table a slot")
	assert.Equal(t, doctor.Warning, f.Level)
	assert.Contains(t, f.Is, "`elsewhere`")
}

// landing is a ClickHouse in which events land while the doctor asks.
type landing struct {
	driver.Conn
	land func()
}

func (l landing) Ping(ctx context.Context) error {
	l.land()
	return l.Conn.Ping(ctx)
}

func TestEventsThatLandMeanwhileAreNoOtherHistory(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := patient(t, env, env.PostgresURL)
	land := func(ahead string) func() {
		return func() {
			var source, end string
			_, err := env.Pool.Exec(t.Context(), "SELECT pg_logical_emit_message(true, 'test', repeat('x', 10000))")
			require.NoError(t, err)
			require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT system_identifier || '/' || $1, (pg_current_wal_lsn() - '0/0' + $2::numeric)::text
				FROM pg_control_system()`, env.Slot, ahead).Scan(&source, &end))
			execute(t, env, "clickhouse", "INSERT INTO event_log (source, commit_lsn, commit_seq) VALUES ('"+source+"', "+end+", 1)")
		}
	}
	p.Probe.ClickHouse = landing{env.ClickHouse, land("0")}
	f := examine(t, p, "both", "history")
	assert.NotContains(t, f.Is, "restored", "the event is younger than the first look at the WAL")
	p.Probe.ClickHouse = landing{env.ClickHouse, land("1099511627776")}
	f = examine(t, p, "both", "history")
	assert.Equal(t, doctor.Error, f.Level)
	assert.Contains(t, f.Is, "restored from a backup")
	assert.Contains(t, f.Mend, "REPLICATION_SLOT")
}

func TestRolesAreExamined(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for attributes, want := range map[string]struct{ replicate, privileges doctor.Level }{
		"REPLICATION IN ROLE diehard_streamer":   {doctor.OK, doctor.OK},
		"NOREPLICATION IN ROLE diehard_streamer": {doctor.Error, doctor.OK},
		"REPLICATION":                            {doctor.OK, doctor.Error},
	} {
		url := login(t, env, attributes)
		p := patient(t, env, url)
		assert.Equal(t, want.replicate, examine(t, p, "postgresql", "replication privilege").Level, attributes)
		f := examine(t, p, "postgresql", "privileges")
		assert.Equal(t, want.privileges, f.Level, "%s: %s", attributes, f.Is)
	}
}

// login makes a role and returns its connection string.
func login(t *testing.T, env *testenv.Env, attributes string) string {
	t.Helper()
	name := env.Slot + "_" + strings.ToLower(strings.ReplaceAll(attributes, " ", "_"))
	name = name[:min(len(name), 60)]
	_, err := env.Pool.Exec(t.Context(), "CREATE ROLE "+name+" LOGIN PASSWORD 'secret' "+attributes)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+name)
		assert.NoError(t, err)
	})
	config, err := pgx.ParseConfig(env.PostgresURL)
	require.NoError(t, err)
	return strings.Replace(env.PostgresURL, config.User+"@", name+":secret@", 1)
}

func TestADatabaseThatIsAwayHidesNothingOfTheOther(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := patient(t, env, "postgres://someone:hunter2@127.0.0.1:1/app")
	findings := doctor.Examine(t.Context(), p)
	assert.Equal(t, doctor.Error, doctor.Worst(findings))
	assert.Equal(t, "connection", findings[0].Check)
	assert.NotContains(t, findings[0].Is, "hunter2")
	assert.Equal(t, doctor.OK, examine(t, p, "clickhouse", "tables").Level)
}
