package migrations_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

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
	_, err := env.Pool.Exec(t.Context(), "INSERT INTO diehard_slot (slot_name, messages) VALUES ('s', true)")
	require.NoError(t, err)
	conn := connectAs(t, login(t, env, "diehard_api", ""))
	for _, statement := range []string{
		"INSERT INTO users (email, first_name, last_name) VALUES ('a@example.com', 'A', 'B') RETURNING id",
		"SELECT * FROM users",
		`INSERT INTO outbox (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
			VALUES (gen_random_uuid(), 't', now(), '', '{}', 1, NULL)`,
		"SELECT publish_event('t', '{}')", "SELECT publish_event('t', '{}', event_id => event_id_for('key'))",
		`SELECT * FROM publish_events('[{"event_type": "t", "event_context": 1, "event_key": "key"}]')`,
		"SELECT publish_event_message('t', '{}')", "INSERT INTO diehard_events (event_type, event_context) VALUES ('t', '{}') RETURNING *",
		"INSERT INTO outbox (event_type, event_context, published_by) VALUES ('t', '{}', 'a caller')",
		"SELECT key, request, first_id FROM diehard_idempotency_keys WHERE created_at > now()", "SELECT diehard_idempotency_keys_clean()",
		"INSERT INTO diehard_idempotency_keys (key, request, first_id) VALUES (sha256(''), sha256(''), gen_random_uuid())",
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
		"SELECT * FROM diehard_slot", "UPDATE diehard_slot SET messages = true",
		"SELECT * FROM outbox", "SELECT * FROM diehard_outbox_default", "SELECT * FROM slot_lag",
		"UPDATE outbox SET event_type = 'x'", "DELETE FROM outbox", "TRUNCATE outbox",
		"INSERT INTO outbox (event_type, event_context, published_at) VALUES ('t', '{}', '2000-01-01')",
		"INSERT INTO diehard_outbox_default (event_type, event_context) VALUES ('t', '{}')",
		"DELETE FROM diehard_idempotency_keys", "UPDATE diehard_idempotency_keys SET key = key", "TRUNCATE diehard_idempotency_keys_0",
		"INSERT INTO diehard_idempotency_keys (key, request, first_id, created_at) VALUES (sha256(''), sha256(''), gen_random_uuid(), '2000-01-01')",
		"UPDATE users SET email = 'x'", "DELETE FROM users", "TRUNCATE users",
		"SELECT outbox_create_partitions(1)", "INSERT INTO diehard_outbox_version (version_id) VALUES (99)",
		"DROP PUBLICATION outbox_pub", "CREATE TABLE x ()", "DROP TABLE diehard_outbox_default",
		"SELECT pg_create_logical_replication_slot('" + env.Slot + "', 'pgoutput')",
	} {
		_, err := conn.Exec(t.Context(), statement)
		requireRefused(t, statement, err)
	}
}

// A producer publishes in every way, and neither reads, forges who published, nor
// touches what is the api's.
func TestProducerRoleMayPublishAndNothingElse(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "INSERT INTO diehard_slot (slot_name, messages) VALUES ('s', true)")
	require.NoError(t, err)
	config := login(t, env, "diehard_producer", "")
	conn := connectAs(t, config)
	for _, statement := range []string{
		"INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')",
		"INSERT INTO diehard_events (event_type, event_context) VALUES ('t', '{}') RETURNING *",
		"INSERT INTO diehard_events VALUES (DEFAULT, 't', DEFAULT, DEFAULT, '{}', DEFAULT, DEFAULT) RETURNING id",
		"SELECT publish_event('t', '{}')", "SELECT * FROM publish_events('[{\"event_type\": \"t\", \"event_context\": 1}]')",
		"SELECT publish_event('t', '{}', idempotency_key => 'k')", "SELECT publish_event_message('t', '{}', idempotency_key => 'm')",
	} {
		_, err := conn.Exec(t.Context(), statement)
		assert.NoError(t, err, statement)
	}
	var by []string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT array_agg(DISTINCT published_by) FROM outbox").Scan(&by))
	assert.Equal(t, []string{config.User}, by)
	var seen int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM diehard_events").Scan(&seen))
	assert.Zero(t, seen, "nothing can be read through the view")
	for _, statement := range []string{
		"INSERT INTO outbox (event_type, event_context, published_by) VALUES ('t', '{}', 'boss')",
		"INSERT INTO outbox (event_type, event_context, published_at) VALUES ('t', '{}', '2000-01-01')",
		"INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}') RETURNING id",
		"SELECT * FROM outbox", "UPDATE diehard_events SET event_type = 'x'", "DELETE FROM diehard_events",
		"SELECT * FROM users", "INSERT INTO users (email, first_name, last_name) VALUES ('a', 'b', 'c')",
		"SELECT * FROM diehard_idempotency_keys", "SELECT diehard_idempotency_keys_clean()",
		"INSERT INTO diehard_idempotency_keys (key, request, first_id) VALUES (sha256(''), sha256(''), gen_random_uuid())",
		"SELECT * FROM diehard_published_keys", "SELECT diehard_claim_key('k', gen_random_uuid(), 't', '{}')", "SELECT diehard_delete_keys()",
		"SELECT * FROM diehard_slot", "SELECT diehard_slot_delete('s')", "SELECT outbox_create_partitions(1)",
	} {
		_, err := conn.Exec(t.Context(), statement)
		requireRefused(t, statement, err)
	}
}

// Where functions are not PUBLIC's to call, as administrators like it, the roles are granted what they need.
func TestDefaultPrivilegesTakeNothingFromTheRoles(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	address := emptyDatabase(t, env, "closed")
	owner := connect(t, address)
	_, err := owner.Exec(t.Context(), "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC; ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC")
	require.NoError(t, err)
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: address}, quiet))
	_, err = owner.Exec(t.Context(), "INSERT INTO diehard_slot (slot_name, messages) VALUES ('s', true)")
	require.NoError(t, err)
	for role, statements := range map[string][]string{
		"diehard_producer": {
			"INSERT INTO outbox (event_type, event_context) VALUES ('t', '\"{}\"')", "INSERT INTO diehard_events (event_type, event_context) VALUES ('t', '{}') RETURNING *",
			"SELECT publish_event('t', '{}', event_key => 'k')", "SELECT publish_events('[]')", "SELECT publish_event_message('t', '{}')", "SELECT event_id_for('k')",
			"INSERT INTO outbox (id, event_type, event_context) VALUES (event_id_for('k'), 't', '{}')",
		},
		"diehard_streamer": {
			"SELECT outbox_create_partitions(8)", "SELECT outbox_retire_partitions('1 day')", "SELECT diehard_delete_keys()", "SELECT outbox_confirmed()", "TABLE slot_lag", "TABLE diehard_partitions",
		},
	} {
		config := login(t, env, role, "")
		config.Database = owner.Config().Database
		conn := connectAs(t, config)
		for _, statement := range statements {
			_, err := conn.Exec(t.Context(), statement)
			assert.NoError(t, err, statement)
		}
		require.NoError(t, conn.Close(t.Context()))
	}
}

func TestStreamerRoleMayReadAndReplicateAndNothingElse(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	config := login(t, env, "diehard_streamer", "REPLICATION")
	conn := connectAs(t, config)
	for _, statement := range []string{
		"SELECT * FROM outbox", "SELECT * FROM diehard_outbox_default", "SELECT * FROM slot_lag", "SELECT outbox_create_partitions(8)",
		"SELECT * FROM pg_replication_slots", "SELECT pg_current_wal_lsn()",
		"SELECT * FROM pg_publication_tables", "SELECT system_identifier FROM pg_control_system()",
		"SELECT pg_create_logical_replication_slot('" + env.Slot + "', 'pgoutput')",
		"SELECT pg_copy_logical_replication_slot('" + env.Slot + "', '" + env.Slot + "_copy')",
		"SELECT pg_replication_slot_advance('" + env.Slot + "', pg_current_wal_lsn())",
		"SELECT pg_drop_replication_slot('" + env.Slot + "_copy')",
		"SELECT diehard_slot_record('" + env.Slot + "', 'outbox_pub', 'state', false, NULL)", "SELECT diehard_slot_messages('" + env.Slot + "', true, '0/1')",
		"SELECT diehard_slot_accept('" + env.Slot + "', 'outbox_pub', 'state', false)", "SELECT diehard_slot_replace('" + env.Slot + "', 'outbox_pub', 'state', true)",
		"SELECT diehard_slot_delivered('" + env.Slot + "', now())", "SELECT diehard_slot_undelivered('" + env.Slot + "', true)",
		"SELECT diehard_slot_delete('other')", "SELECT * FROM diehard_slot", "SELECT diehard_delete_keys()",
		"SELECT * FROM diehard_partitions", "SELECT * FROM diehard_retired", "SELECT outbox_retire_partitions('30 days')",
		"SELECT * FROM diehard_outbox_version",
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
		"SELECT publish_event_message('t', '{}')", "SELECT publish_events('[]')",
		"UPDATE outbox SET event_type = 'x'", "DELETE FROM outbox", "TRUNCATE outbox",
		"SELECT * FROM users", "INSERT INTO users (email, first_name, last_name) VALUES ('a', 'b', 'c')",
		"DROP PUBLICATION outbox_pub", "CREATE TABLE x ()", "DROP TABLE diehard_outbox_default",
		"INSERT INTO diehard_outbox_default (event_type, event_context) VALUES ('t', '{}')", "ALTER TABLE outbox DISABLE TRIGGER ALL",
		"INSERT INTO diehard_slot (slot_name) VALUES ('x')", "UPDATE diehard_slot SET delivered_since = now()",
		"DELETE FROM diehard_slot", "SELECT * FROM diehard_published_keys", "SELECT * FROM diehard_idempotency_keys",
		"UPDATE diehard_slot SET publication_state = 'x'", "DELETE FROM diehard_retired", "UPDATE diehard_retired SET state = 'dropped'",
		"INSERT INTO diehard_outbox_version (version_id) VALUES (99)",
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
			replaceFunction(t, env),
			"CREATE PUBLICATION mine FOR ALL TABLES", "ALTER PUBLICATION outbox_pub SET (publish = 'insert, delete')",
		} {
			_, err := conn.Exec(t.Context(), statement)
			requireRefused(t, group+": "+statement, err)
		}
	}
}

// replaceFunction replaces publish_event, and not one of its name with other arguments.
func replaceFunction(t *testing.T, env *testenv.Env) (statement string) {
	t.Helper()
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT format('CREATE OR REPLACE FUNCTION publish_event(%s) RETURNS uuid LANGUAGE sql AS ''SELECT NULL::uuid''',
		pg_get_function_arguments(oid)) FROM pg_proc WHERE proname = 'publish_event'`).Scan(&statement))
	return statement
}

// requireRefused accepts only a missing privilege as the reason. Creating in
// schema public is open to everyone before PostgreSQL 15.
func requireRefused(t *testing.T, statement string, err error) {
	t.Helper()
	if err == nil && strings.HasPrefix(statement, "CREATE TABLE") {
		return
	}
	require.Error(t, err, statement)
	requireCode(t, pgerrcode.InsufficientPrivilege, err)
}
