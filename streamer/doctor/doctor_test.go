package doctor_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
	"diehard/streamer/doctor"
	"diehard/streamer/ops"
	"diehard/streamer/replication"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// target is env as url's user sees it.
func target(t *testing.T, env *testenv.Env, url string) doctor.Target {
	t.Helper()
	pool, err := postgres.NewPool(t.Context(), postgres.Config{URL: url, MaxConns: 2}, "doctor")
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return doctor.Target{PostgresURL: url, ClickHouse: env.ClickHouseConfig, InsertTimeout: time.Minute, Probe: &ops.Probe{
		Postgres: pool, ClickHouse: env.ClickHouse, Origin: replication.Origin{Slot: env.Slot, Publication: env.Publication},
		EventLog: env.ClickHouseConfig.EventLogTable, DeadLetter: env.ClickHouseConfig.DeadLetterTable,
	}}
}

// finding returns the finding of one check.
func finding(t *testing.T, p doctor.Target, where, check string) doctor.Finding {
	t.Helper()
	findings := doctor.Check(t.Context(), p)
	for _, f := range findings {
		if f.Where == where && f.Check == check {
			return f
		}
	}
	require.Fail(t, "no such finding", "%s %s in %v", where, check, findings)
	return doctor.Finding{}
}

// serverWide are checks of the servers as a whole, which tests share.
var serverWide = map[string]bool{
	"durability": true, "slots left": true, "senders left": true, "max_slot_wal_keep_size": true,
	"failover": true, "long transactions": true, "disk": true, "clock": true,
}

func TestFreshDatabasesPass(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	execute(t, env, "postgresql", "REVOKE CREATE ON SCHEMA public FROM PUBLIC") // PostgreSQL 14 grants it
	// What operators add to event_log is theirs.
	execute(t, env, "clickhouse", "ALTER TABLE event_log ADD INDEX by_words lower(event_context) TYPE text(tokenizer = splitByNonAlpha)")
	findings := doctor.Check(t.Context(), target(t, env, env.PostgresURL))
	assert.Greater(t, len(findings), 25)
	for _, f := range findings {
		if !serverWide[f.Check] {
			assert.Equalf(t, doctor.OK, f.Level, "%s: %s", f.Check, f.Actual)
		}
		assert.NotEmpty(t, f.Actual, f.Check)
		assert.Equal(t, f.Level != doctor.OK, f.Fix != "", f.Check)
	}
	var out bytes.Buffer
	require.NoError(t, doctor.WriteText(&out, findings))
	assert.Regexp(t, `(?m)^  ok    publication +outbox_pub sends inserts of the outbox$`, out.String())
}

// The printed fix, executed literally, fixes the finding.
func TestFixesFix(t *testing.T) {
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
		{"postgresql", "outbox's schema", doctor.Warning, "GRANT CREATE ON SCHEMA public TO PUBLIC"},
		{"postgresql", "diehard_outbox_default", doctor.Warning, "INSERT INTO outbox (event_type, event_context, published_at) VALUES ('t', '{}', now() - interval '30 days')"},
		{"postgresql", "partitions ahead", doctor.Warning, `DO $$ DECLARE p text; BEGIN
			FOR p IN SELECT partition FROM diehard_partitions WHERE starts_at > now() LOOP EXECUTE 'DROP TABLE ' || p; END LOOP; END $$`},
		{"clickhouse", "durability", doctor.Warning, "ALTER TABLE event_log MODIFY SETTING fsync_after_insert = 0"},
		{"clickhouse", "deduplication window", doctor.Error, "ALTER TABLE event_log MODIFY SETTING non_replicated_deduplication_window = 0"},
		{"clickhouse", "engine", doctor.Warning, "ALTER TABLE event_log DROP PROJECTION p_position"},
	} {
		t.Run(c.check, func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			p := target(t, env, env.PostgresURL)
			execute(t, env, c.where, c.harm)
			f := finding(t, p, c.where, c.check)
			require.Equal(t, c.level, f.Level, f.Actual)
			execute(t, env, c.where, f.Fix)
			f = finding(t, p, c.where, c.check)
			assert.Equal(t, doctor.OK, f.Level, f.Actual)
		})
	}
}

// Where messages are events, no login but the owner of the publishing functions writes them.
func TestMessagesThatEveryLoginMayWriteAreAnError(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	execute(t, env, "postgresql", "CREATE ROLE "+env.Slot+"; GRANT CREATE ON SCHEMA public TO "+env.Slot+"; ALTER TABLE outbox OWNER TO "+env.Slot)
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+env.Slot+" CASCADE; DROP ROLE "+env.Slot)
		assert.NoError(t, err)
	})
	p := target(t, env, env.PostgresURL)
	assert.Equal(t, doctor.OK, finding(t, p, "postgresql", "messages").Level, "they are not read")
	p.Probe.Origin.Messages = true
	open := finding(t, p, "postgresql", "messages")
	require.Equal(t, doctor.Error, open.Level)
	assert.Contains(t, open.Actual, "every login")
	p.Probe.Origin.Messages = false
	execute(t, env, "postgresql", "INSERT INTO diehard_slot (slot_name, messages_from) VALUES ('"+env.Slot+"', '0/1')")
	assert.Equal(t, doctor.Error, finding(t, p, "postgresql", "messages").Level, "they were read once, and those in the WAL still are events")

	execute(t, env, "postgresql", open.Fix)
	assert.Equal(t, doctor.OK, finding(t, p, "postgresql", "messages").Level)
	var owner, public bool
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT bool_and(has_function_privilege($1, oid, 'EXECUTE')), bool_or(has_function_privilege('public', oid, 'EXECUTE'))
		FROM pg_proc WHERE proname = 'pg_logical_emit_message'`, env.Slot).Scan(&owner, &public))
	assert.Equal(t, []bool{true, false}, []bool{owner, public})
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

func TestMissingObjectsAreNamed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ where, check, harm, is string }{
		{"postgresql", "outbox columns", "ALTER TABLE outbox RENAME COLUMN event_type TO kind", "event_type is missing"},
		{"postgresql", "outbox columns", "DROP VIEW diehard_events; ALTER TABLE outbox DROP CONSTRAINT outbox_event, ALTER trace_context TYPE int USING 0", "trace_context is integer, not text or varchar"},
		{"postgresql", "slot", "INSERT INTO diehard_slot (slot_name) VALUES ('SLOT')", "is gone, and with it the position in the WAL: events may be missing"},
		{"postgresql", "slot", "SELECT pg_create_physical_replication_slot('SLOT')", "not pgoutput"},
		{"postgresql", "outbox", "ALTER TABLE outbox RENAME TO outbox_2; CREATE VIEW outbox AS SELECT * FROM outbox_2", "is a view"},
		{"postgresql", "publication", "CREATE SCHEMA other; CREATE TABLE other.outbox (id uuid); ALTER PUBLICATION outbox_pub SET TABLE other.outbox", "holds other.outbox"},
		{"postgresql", "migrations", "DELETE FROM diehard_outbox_version WHERE version_id = 3", "1 are missing"},
		{"clickhouse", "tables", "DROP TABLE event_dead_letter", "event_dead_letter does not exist"},
		{"clickhouse", "tables", "ALTER TABLE event_log DROP COLUMN timeline SETTINGS mutations_sync = 1", "column timeline"},
	} {
		t.Run(c.check, func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			if strings.Contains(c.harm, "timeline") {
				execute(t, env, c.where, "ALTER TABLE event_log DROP PROJECTION p_position")
			}
			execute(t, env, c.where, strings.ReplaceAll(c.harm, "SLOT", env.Slot))
			f := finding(t, target(t, env, env.PostgresURL), c.where, c.check)
			assert.Equal(t, doctor.Error, f.Level)
			assert.Contains(t, f.Actual, c.is)
		})
	}
}

func TestSlotWithTwoTablesIsReported(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	execute(t, env, "clickhouse", "CREATE TABLE elsewhere AS event_log")
	p := target(t, env, env.PostgresURL)
	assert.Equal(t, doctor.OK, finding(t, p, "clickhouse", "one table per slot").Level, "it is empty")
	var system string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT system_identifier::text FROM pg_control_system()").Scan(&system))
	execute(t, env, "clickhouse", "INSERT INTO elsewhere (source, commit_lsn, commit_seq) VALUES ('"+system+"/"+env.Slot+"', 1, 1)")
	f := finding(t, p, "clickhouse", "one table per slot")
	assert.Equal(t, doctor.Warning, f.Level)
	assert.Contains(t, f.Actual, "`elsewhere`")
}

func TestContextsThatAreEncodedTwiceAreReported(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := target(t, env, env.PostgresURL)
	var system string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT system_identifier::text FROM pg_control_system()").Scan(&system))
	insert := func(context, ago string) {
		execute(t, env, "clickhouse", "INSERT INTO event_log (event_type, source, commit_lsn, commit_seq, ingested_at, event_context) VALUES ('paid', '"+
			system+"/"+env.Slot+"', 1, 1, now() - INTERVAL "+ago+", $$"+context+"$$)")
	}
	insert(`"[not JSON"`, "1 MINUTE")
	insert(`{"a": "{}"}`, "1 MINUTE")
	insert(`"{}"`, "2 HOUR")
	assert.Equal(t, doctor.OK, finding(t, p, "clickhouse", "encoding").Level)
	insert(`"{\"a\": \"\\u00e9\"}"`, "1 MINUTE")
	insert(` "[1]"`, "1 MINUTE")
	f := finding(t, p, "clickhouse", "encoding")
	assert.Equal(t, doctor.Warning, f.Level)
	assert.Contains(t, f.Actual, "2 contexts of the last hour are JSON strings that hold JSON, of the types paid")
}

// writing is a ClickHouse in which events are written while doctor runs.
type writing struct {
	clickhouse.Conn
	write func()
}

func (l writing) Ping(ctx context.Context) error {
	l.write()
	return l.Conn.Ping(ctx)
}

func TestEventsWrittenMeanwhileAreNotDivergedHistory(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := target(t, env, env.PostgresURL)
	write := func(ahead string) func() {
		return func() {
			var source, end string
			_, err := env.Pool.Exec(t.Context(), "SELECT pg_logical_emit_message(true, 'test', repeat('x', 10000))")
			require.NoError(t, err)
			require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT system_identifier || '/' || $1, (pg_current_wal_lsn() - '0/0' + $2::numeric)::text
				FROM pg_control_system()`, env.Slot, ahead).Scan(&source, &end))
			execute(t, env, "clickhouse", "INSERT INTO event_log (source, commit_lsn, commit_seq) VALUES ('"+source+"', "+end+", 1)")
		}
	}
	p.Probe.ClickHouse = writing{env.ClickHouse, write("0")}
	f := finding(t, p, "both", "history")
	assert.NotContains(t, f.Actual, "restored", "the event is younger than the first look at the WAL")
	p.Probe.ClickHouse = writing{env.ClickHouse, write("1099511627776")}
	f = finding(t, p, "both", "history")
	assert.Equal(t, doctor.Error, f.Level)
	assert.Contains(t, f.Actual, "restored from a backup")
	assert.Contains(t, f.Fix, "REPLICATION_SLOT")
}

func TestEventsOfAServerThatIsGoneAreReported(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := target(t, env, env.PostgresURL)
	execute(t, env, "clickhouse", "INSERT INTO event_log (source, commit_lsn, commit_seq) VALUES ('1/"+env.Slot+"', 1, 1)")
	f := finding(t, p, "both", "history")
	assert.Equal(t, doctor.Warning, f.Level)
	assert.Contains(t, f.Actual, "from another PostgreSQL server (1/"+env.Slot+")")
}

func TestRolesAreChecked(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for attributes, want := range map[string]struct{ replicate, privileges doctor.Level }{
		"REPLICATION IN ROLE diehard_streamer":   {doctor.OK, doctor.OK},
		"NOREPLICATION IN ROLE diehard_streamer": {doctor.Error, doctor.OK},
		"REPLICATION":                            {doctor.OK, doctor.Error},
	} {
		url := login(t, env, attributes)
		p := target(t, env, url)
		assert.Equal(t, want.replicate, finding(t, p, "postgresql", "replication connection").Level, attributes)
		f := finding(t, p, "postgresql", "privileges")
		assert.Equal(t, want.privileges, f.Level, "%s: %s", attributes, f.Actual)
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
	return testenv.AsUser(t, env.PostgresURL, name, "secret")
}

func TestAnUnreachableDatabaseDoesNotHideTheOther(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := target(t, env, "postgres://someone:hunter2@127.0.0.1:1/app")
	findings := doctor.Check(t.Context(), p)
	assert.Equal(t, doctor.Error, doctor.Worst(findings))
	assert.Equal(t, "connection", findings[0].Check)
	assert.NotContains(t, findings[0].Actual, "hunter2")
	assert.Equal(t, doctor.OK, finding(t, p, "clickhouse", "tables").Level)
}

// What another reader confirms, the streamer does not deliver.
func TestAForeignSessionOnTheSlotIsAnError(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
	require.NoError(t, err)
	cfg, err := pgconn.ParseConfig(env.PostgresURL)
	require.NoError(t, err)
	cfg.RuntimeParams["replication"], cfg.RuntimeParams["application_name"] = "database", "pg_recvlogical"
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	require.NoError(t, pglogrepl.StartReplication(t.Context(), conn, env.Slot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names '" + env.Publication + "'"},
	}))
	f := finding(t, target(t, env, env.PostgresURL), "postgresql", "slot")
	assert.Equal(t, doctor.Error, f.Level)
	assert.Contains(t, f.Actual, `active for "pg_recvlogical", which is not a streamer`)
}
