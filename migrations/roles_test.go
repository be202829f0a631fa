package migrations_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/testenv"
)

const insufficientPrivilege = "42501"

// login makes a role that has no more than the group gives it, and connects as
// that role.
func login(t *testing.T, env *testenv.Env, group, attributes string) *pgx.ConnConfig {
	t.Helper()
	name := env.Slot + "_" + group
	_, err := env.Pool.Exec(t.Context(), "CREATE ROLE "+name+" LOGIN "+attributes+" PASSWORD 'secret' IN ROLE "+group)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+name+"; DROP ROLE "+name)
		assert.NoError(t, err)
	})
	config, err := pgx.ParseConfig(env.PostgresURL)
	require.NoError(t, err)
	config.User, config.Password = name, "secret"
	return config
}

func connectAs(t *testing.T, config *pgx.ConnConfig) *pgx.Conn {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func TestAPIRoleMayWriteEventsAndNothingElse(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "INSERT INTO streamer_slot (slot_name, publication_oid, messages) VALUES ('s', 1, true)")
	require.NoError(t, err)
	conn := connectAs(t, login(t, env, "diehard_api", ""))
	for _, statement := range []string{
		"INSERT INTO users (email, first_name, last_name) VALUES ('a@example.com', 'A', 'B') RETURNING id",
		"SELECT * FROM users",
		`INSERT INTO outbox (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
			VALUES (gen_random_uuid(), 't', now(), '', '{}', 1, NULL)`,
		"SELECT publish_event('t', '{}')", "SELECT publish_event('t', '{}', event_id => event_id_for('key'))",
		`SELECT * FROM publish_events('[{"event_type": "t", "event_context": 1, "event_key": "key"}]')`,
		"SELECT publish_event_message('t', '{}')", "SELECT publish_messages(ARRAY['x'])",
		"SELECT key, request, first_id FROM idempotency_keys WHERE created_at > now()", "SELECT idempotency_keys_clean()",
		"INSERT INTO idempotency_keys (key, request, first_id) VALUES (sha256(''), sha256(''), gen_random_uuid())",
	} {
		_, err := conn.Exec(t.Context(), statement)
		assert.NoError(t, err, statement)
	}
	// pgx asks for the types of the columns first, with a SELECT that it does not run.
	n, err := conn.CopyFrom(t.Context(), pgx.Identifier{"outbox"}, []string{"event_type", "event_context"},
		pgx.CopyFromRows([][]any{{"t", []byte(`{}`)}}))
	require.NoError(t, err)
	assert.EqualValues(t, 1, n)
	for _, statement := range []string{
		"SELECT * FROM streamer_slot", "UPDATE streamer_slot SET messages = true",
		"SELECT * FROM outbox", "SELECT * FROM outbox_default", "SELECT * FROM slot_lag",
		"UPDATE outbox SET event_type = 'x'", "DELETE FROM outbox", "TRUNCATE outbox",
		"INSERT INTO outbox (event_type, event_context, created_at) VALUES ('t', '{}', '2000-01-01')",
		"INSERT INTO outbox_default (event_type, event_context) VALUES ('t', '{}')",
		"DELETE FROM idempotency_keys", "UPDATE idempotency_keys SET key = key", "TRUNCATE idempotency_keys_0",
		"INSERT INTO idempotency_keys (key, request, first_id, created_at) VALUES (sha256(''), sha256(''), gen_random_uuid(), '2000-01-01')",
		"UPDATE users SET email = 'x'", "DELETE FROM users", "TRUNCATE users",
		"SELECT outbox_create_partitions(1)", "SELECT * FROM diehard_migrations",
		"DROP PUBLICATION outbox_pub", "CREATE TABLE x ()", "DROP TABLE outbox_default",
		"SELECT pg_create_logical_replication_slot('" + env.Slot + "', 'pgoutput')",
	} {
		_, err := conn.Exec(t.Context(), statement)
		requireRefused(t, statement, err)
	}
}

func TestStreamerRoleMayReadAndReplicateAndNothingElse(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	config := login(t, env, "diehard_streamer", "REPLICATION")
	conn := connectAs(t, config)
	for _, statement := range []string{
		"SELECT * FROM outbox", "SELECT * FROM outbox_default", "SELECT * FROM slot_lag", "SELECT outbox_create_partitions(8)",
		"SELECT * FROM pg_replication_slots", "SELECT pg_current_wal_lsn()",
		"SELECT * FROM pg_publication_tables", "SELECT system_identifier FROM pg_control_system()",
		"SELECT pg_create_logical_replication_slot('" + env.Slot + "', 'pgoutput')",
		"SELECT pg_copy_logical_replication_slot('" + env.Slot + "', '" + env.Slot + "_copy')",
		"SELECT pg_replication_slot_advance('" + env.Slot + "', pg_current_wal_lsn())",
		"SELECT pg_drop_replication_slot('" + env.Slot + "_copy')",
		"UPDATE streamer_slot SET messages = true, messages_from = '0/1'",
		"SELECT * FROM outbox_partitions", "SELECT * FROM outbox_retired", "SELECT outbox_retire_partitions('30 days')",
		"INSERT INTO streamer_slot (slot_name, publication_oid) VALUES ('x', 1)",
		"UPDATE streamer_slot SET delivered_since = now()", "DELETE FROM streamer_slot WHERE slot_name = 'x'",
		"SELECT * FROM diehard_migrations",
	} {
		_, err := conn.Exec(t.Context(), statement)
		assert.NoError(t, err, statement)
	}
	config.RuntimeParams["replication"] = "database"
	walsender, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err, "a replication connection")
	require.NoError(t, walsender.Close(t.Context()))

	for _, statement := range []string{
		"INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')", "SELECT publish_event('t', '{}')",
		"SELECT publish_event_message('t', '{}')", "SELECT publish_messages('{}')", "SELECT publish_events('[]')",
		"UPDATE outbox SET event_type = 'x'", "DELETE FROM outbox", "TRUNCATE outbox",
		"SELECT * FROM users", "INSERT INTO users (email, first_name, last_name) VALUES ('a', 'b', 'c')",
		"DROP PUBLICATION outbox_pub", "CREATE TABLE x ()", "DROP TABLE outbox_default",
		"INSERT INTO outbox_default (event_type, event_context) VALUES ('t', '{}')", "ALTER TABLE outbox DISABLE TRIGGER ALL",
		"UPDATE streamer_slot SET publication_oid = 1", "DELETE FROM outbox_retired", "UPDATE outbox_retired SET state = 'dropped'",
		"INSERT INTO diehard_migrations (version_id, is_applied) VALUES (99, true)",
	} {
		_, err := conn.Exec(t.Context(), statement)
		requireRefused(t, statement, err)
	}
}

// What neither may, because it would be the whole server's undoing.
func TestRolesAreNoAdministrators(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for group, attributes := range map[string]string{"diehard_api": "", "diehard_streamer": "REPLICATION"} {
		conn := connectAs(t, login(t, env, group, attributes))
		for _, statement := range []string{
			"CREATE ROLE intruder", "ALTER ROLE postgres PASSWORD 'x'", "GRANT pg_read_all_data TO " + group, "GRANT postgres TO " + group,
			"SET ROLE postgres", "CREATE SCHEMA mine", "CREATE EXTENSION dblink", "ALTER SYSTEM SET fsync = off",
			"SELECT pg_read_file('postgresql.conf')", "SELECT pg_ls_dir('.')", "SELECT lo_import('postgresql.conf')",
			"COPY (SELECT 1) TO PROGRAM 'true'", "COPY (SELECT 1) TO '/tmp/intruder'", "SELECT rolpassword FROM pg_authid",
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
			"CREATE OR REPLACE FUNCTION publish_event(text, jsonb, text, bigint, text, timestamptz, uuid) RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'",
			"CREATE PUBLICATION mine FOR ALL TABLES", "ALTER PUBLICATION outbox_pub SET (publish = 'insert, delete')",
		} {
			_, err := conn.Exec(t.Context(), statement)
			requireRefused(t, group+": "+statement, err)
		}
	}
}

// requireRefused accepts only a missing privilege as the reason. Creating in
// schema public is open to everyone before PostgreSQL 15.
func requireRefused(t *testing.T, statement string, err error) {
	t.Helper()
	if err == nil && strings.HasPrefix(statement, "CREATE TABLE") {
		return
	}
	require.Error(t, err, statement)
	requireCode(t, insufficientPrivilege, err)
}
