package migrations_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
	"diehard/shared/postgres"
)

var quiet = slog.New(slog.DiscardHandler)

// emptyDatabase makes a database beside that of env and returns its address.
func emptyDatabase(t *testing.T, env *testenv.Env, name string) string {
	t.Helper()
	name = env.Slot + "_" + name
	_, err := env.Pool.Exec(t.Context(), "CREATE DATABASE "+name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP DATABASE "+name+" WITH (FORCE)")
		assert.NoError(t, err)
	})
	address, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	address.Path = "/" + name
	return address.String()
}

// catalog describes everything in the database that is not PostgreSQL's own.
const catalog = `
	SELECT 'relation ' || c.oid::regclass || ' ' || c.relkind::text || ' ' || coalesce(c.relacl::text, '') ||
	       coalesce(' ' || pg_get_viewdef(CASE WHEN c.relkind = 'v' THEN c.oid END), '') || coalesce(' ' || pg_get_partkeydef(c.oid), '') AS line
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_|^information_schema'
	UNION ALL
	SELECT concat_ws(' ', 'column', a.attrelid::regclass, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attacl,
	       pg_get_expr(d.adbin, d.adrelid))
	FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
	LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum WHERE a.attnum > 0 AND n.nspname !~ '^pg_|^information_schema'
	UNION ALL
	SELECT 'constraint ' || k.conrelid::regclass || ' ' || k.conname || ' ' || pg_get_constraintdef(k.oid) FROM pg_constraint k WHERE k.conrelid <> 0
	   AND k.connamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
	UNION ALL
	SELECT 'function ' || pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '') FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
	WHERE n.nspname !~ '^pg_|^information_schema'
	UNION ALL
	SELECT concat_ws(' ', 'publication', p.pubname, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, r.prrelid::regclass)
	FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
	UNION ALL
	SELECT concat_ws(' ', 'schema', nspname, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema'
	UNION ALL
	SELECT 'comment ' || objoid::regclass || ' ' || objsubid || ' ' || description FROM pg_description WHERE classoid = 'pg_class'::regclass AND objoid >= 16384
	ORDER BY 1`

func catalogOf(t *testing.T, address string) []string {
	t.Helper()
	rows, err := connect(t, address).Query(t.Context(), catalog)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return lines
}

// A script for psql, Flyway or Django does what `migrate up` does, which then finds
// nothing to do; in schemas whose names need quotes, too.
func TestTheScriptMakesTheSameCatalog(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for name, schema := range map[string]event.Schema{"public": "", "own": "Own-Schema", "reserved": "order"} {
		outbox, api := migrations.Outbox(schema, "own_pub"), migrations.API(schema)
		byUp, byScript := emptyDatabase(t, env, name+"_up"), emptyDatabase(t, env, name+"_script")
		conn := connect(t, byScript)
		for _, set := range []migrations.Set{outbox, api} {
			require.NoError(t, set.Up(t.Context(), postgres.Config{URL: byUp}, quiet))
			var all, pending bytes.Buffer
			require.NoError(t, set.WriteAll(&all))
			require.NoError(t, set.WritePending(t.Context(), postgres.Config{URL: byScript}, &pending))
			assert.Equal(t, all.String(), pending.String())
			_, err := conn.Exec(t.Context(), "SET search_path = somewhere, public")
			require.NoError(t, err)
			_, err = conn.Exec(t.Context(), all.String())
			require.NoError(t, err)
			var path string
			require.NoError(t, conn.QueryRow(t.Context(), "SHOW search_path").Scan(&path))
			assert.Equal(t, "somewhere, public", path, "the script leaves the session as it was")

			list, err := set.Status(t.Context(), postgres.Config{URL: byScript})
			require.NoError(t, err)
			for _, m := range list {
				assert.True(t, m.Applied(), m.Name)
			}
			require.NoError(t, set.Up(t.Context(), postgres.Config{URL: byScript}, quiet), "nothing is left to do")
			pending.Reset()
			require.NoError(t, set.WritePending(t.Context(), postgres.Config{URL: byScript}, &pending))
			assert.Contains(t, pending.String(), "nothing is pending")
			assert.NotContains(t, pending.String(), "CREATE")
		}
		assert.Equal(t, catalogOf(t, byUp), catalogOf(t, byScript))
		_, err := conn.Exec(t.Context(), schema.SQL("SELECT {outbox}.publish_event('t', '{}')"))
		require.NoError(t, err)
	}
}

// An application that has been there for ten years keeps its tables.
func TestTablesOfTheApplicationAreNotTouched(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	address := emptyDatabase(t, env, "app")
	conn := connect(t, address)
	_, err := conn.Exec(t.Context(), `CREATE TABLE users (id int); CREATE TABLE goose_db_version (id int); CREATE TABLE outbox_default (id int);
		CREATE TABLE streamer_slot (id int); CREATE TABLE idempotency_keys (id int); CREATE TABLE accounts (email text);
		CREATE UNIQUE INDEX users_email_key ON accounts (email);
		CREATE FUNCTION log_event(kind text, body text) RETURNS int LANGUAGE sql AS 'SELECT 1'`)
	require.NoError(t, err)
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: address}, quiet))
	err = migrations.API("").Up(t.Context(), postgres.Config{URL: address}, quiet)
	require.ErrorContains(t, err, "users exists, and was not made by `api migrate up`")
	require.NoError(t, migrations.API("shop").Up(t.Context(), postgres.Config{URL: address}, quiet))
	var rows int
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM goose_db_version)
		+ (SELECT count(*) FROM outbox_default) + (SELECT count(*) FROM streamer_slot)`).Scan(&rows))
	assert.Zero(t, rows)

	other := emptyDatabase(t, env, "taken")
	_, err = connect(t, other).Exec(t.Context(), "CREATE TABLE outbox (id int)")
	require.NoError(t, err)
	err = migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: other}, quiet)
	require.ErrorContains(t, err, "outbox exists")
	require.ErrorContains(t, err, "set OUTBOX_SCHEMA to another schema")
	require.NoError(t, migrations.Outbox("diehard", "").Up(t.Context(), postgres.Config{URL: other}, quiet))
}

// As on a managed server: the owner of the database is no superuser.
func TestAnOwnerWithCreateroleMigrates(t *testing.T) {
	t.Parallel()
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "app"})
	admin := connect(t, engine.URL("app"))
	_, err := admin.Exec(t.Context(), `CREATE ROLE owner LOGIN CREATEROLE PASSWORD 'secret'; CREATE ROLE guest LOGIN PASSWORD 'secret';
		ALTER DATABASE app OWNER TO owner`)
	require.NoError(t, err)
	as := func(user string) postgres.Config {
		address, err := url.Parse(engine.URL("app"))
		require.NoError(t, err)
		address.User = url.UserPassword(user, "secret")
		return postgres.Config{URL: address.String()}
	}
	err = migrations.Outbox("diehard", "").Up(t.Context(), as("guest"), quiet)
	require.ErrorContains(t, err, `as the database's owner: CREATE SCHEMA "diehard" AUTHORIZATION guest`)
	for _, set := range []migrations.Set{migrations.Outbox("diehard", ""), migrations.API("diehard")} {
		require.NoError(t, set.Up(t.Context(), as("owner"), quiet))
	}
	conn := connect(t, as("owner").URL)
	_, err = conn.Exec(t.Context(), "GRANT diehard_producer TO guest")
	require.NoError(t, err)
	var id string
	guest := connect(t, as("guest").URL)
	require.NoError(t, guest.QueryRow(t.Context(), "SELECT diehard.publish_event('t', '{}')").Scan(&id))
	var by string
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT published_by FROM diehard.outbox").Scan(&by))
	assert.Equal(t, "guest", by)
}

func TestRolesThatMayCreateInTheSchemaAreMentioned(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	address := emptyDatabase(t, env, "open")
	conn := connect(t, address)
	for grant, warns := range map[string]bool{"GRANT CREATE ON SCHEMA public TO PUBLIC": true, "REVOKE CREATE ON SCHEMA public FROM PUBLIC": false} {
		_, err := conn.Exec(t.Context(), grant)
		require.NoError(t, err)
		var out strings.Builder
		require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: address}, slog.New(slog.NewTextHandler(&out, nil))))
		assert.Equal(t, warns, strings.Contains(out.String(), `REVOKE CREATE ON SCHEMA public FROM PUBLIC`), out.String())
	}
}

func TestUninstallLeavesNothingButWhatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	address := emptyDatabase(t, env, "gone")
	before := catalogOf(t, address)
	outbox := migrations.Outbox("", "")
	cfg := postgres.Config{URL: address}
	require.NoError(t, outbox.Up(t.Context(), cfg, quiet))
	conn := connect(t, address)
	slot := env.Slot + "_gone"
	_, err := conn.Exec(t.Context(), "SELECT pg_create_logical_replication_slot('"+slot+"', 'pgoutput')")
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "SELECT diehard_slot_record('"+slot+"', 'outbox_pub', '', false, NULL)")
	require.NoError(t, err)
	installed := catalogOf(t, address)

	var plan, done bytes.Buffer
	require.NoError(t, outbox.Uninstall(t.Context(), cfg, false, &plan))
	assert.Equal(t, installed, catalogOf(t, address), "nothing is changed")
	require.NoError(t, outbox.Uninstall(t.Context(), cfg, true, &done))
	assert.Equal(t, plan.String(), done.String())
	assert.Equal(t, before, withoutGrants(catalogOf(t, address)))
	var slots int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&slots))
	assert.Zero(t, slots)
	require.ErrorContains(t, outbox.Uninstall(t.Context(), cfg, true, &done), "nothing to uninstall")

	// The api's tables are not the outbox's.
	require.NoError(t, outbox.Up(t.Context(), cfg, quiet))
	require.NoError(t, migrations.API("").Up(t.Context(), cfg, quiet))
	require.NoError(t, outbox.Uninstall(t.Context(), cfg, true, &done))
	_, err = conn.Exec(t.Context(), "INSERT INTO users (email, first_name, last_name) VALUES ('a', '', '')")
	require.NoError(t, err)
}

// schemaGrants are granted by the schema's owner: pg_database_owner since PostgreSQL 15.
var schemaGrants = regexp.MustCompile(`,diehard_(producer|api|streamer)=U/\w+`)

// withoutGrants removes what the schema itself was granted.
func withoutGrants(lines []string) []string {
	kept := lines[:0]
	for _, line := range lines {
		if strings.HasPrefix(line, "schema public ") {
			line = schemaGrants.ReplaceAllString(line, "")
		}
		kept = append(kept, line)
	}
	return kept
}

func TestMessagesAreClosedToStrangers(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "INSERT INTO diehard_slot (slot_name, messages) VALUES ('s', true)")
	require.NoError(t, err)
	const forge = "SELECT pg_logical_emit_message(true, 'diehard.event', 'forged')"
	conn := connectAs(t, login(t, env, "diehard_producer", ""))
	_, err = conn.Exec(t.Context(), forge)
	require.NoError(t, err, "as PostgreSQL comes")
	const mark = "SELECT diehard_mark_wal()"
	streamer := connectAs(t, login(t, env, "diehard_streamer", "REPLICATION"))
	weak := testenv.AsUser(t, env.PostgresURL, env.Slot+"_diehard_streamer", "secret")
	err = migrations.Outbox("", "").CloseMessages(t.Context(), postgres.Config{URL: weak})
	open, ok := errors.AsType[*migrations.OpenMessagesError](err)
	require.True(t, ok, "%v", err)
	_, err = conn.Exec(t.Context(), forge)
	require.NoError(t, err, "only a superuser can close it")
	_, err = env.Pool.Exec(t.Context(), open.Fix)
	require.NoError(t, err, open.Fix)
	require.NoError(t, migrations.Outbox("", "").CloseMessages(t.Context(), postgres.Config{URL: weak}), "it is closed")
	_, err = conn.Exec(t.Context(), forge)
	requireCode(t, pgerrcode.InsufficientPrivilege, err)
	_, err = env.Pool.Exec(t.Context(), "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pg_catalog TO PUBLIC")
	require.NoError(t, err)
	require.NoError(t, migrations.Outbox("", "").CloseMessages(t.Context(), postgres.Config{URL: env.PostgresURL}))
	require.NoError(t, migrations.Outbox("", "").CloseMessages(t.Context(), postgres.Config{URL: env.PostgresURL}), "again")
	_, err = conn.Exec(t.Context(), forge)
	requireCode(t, pgerrcode.InsufficientPrivilege, err)
	_, err = conn.Exec(t.Context(), "SELECT publish_event_message('t', '{}')")
	require.NoError(t, err, "producers have their function")
	_, err = streamer.Exec(t.Context(), strings.ReplaceAll(forge, "forged", "by the streamer"))
	requireCode(t, pgerrcode.InsufficientPrivilege, err)
	_, err = streamer.Exec(t.Context(), mark)
	require.NoError(t, err, "for replays")
	_, err = conn.Exec(t.Context(), mark)
	requireCode(t, pgerrcode.InsufficientPrivilege, err)
}
