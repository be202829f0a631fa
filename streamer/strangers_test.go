package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
	"diehard/shared/postgres"
	"diehard/streamer/ops"
	"diehard/streamer/retention"
)

// stranger is a login without grants on a database in which PUBLIC may create, as on
// every PostgreSQL 14, in the outbox's schema too.
type stranger struct {
	name, url, schema string // url is the administrator's
	admin, conn       *pgx.Conn
	planted           []string
}

func newStranger(t *testing.T, env *testenv.Env, schema string) *stranger {
	t.Helper()
	s := &stranger{name: env.Slot + "_stranger", schema: schema}
	database := env.Slot + "_open"
	administer(t, env, "CREATE DATABASE "+database, "CREATE ROLE "+s.name+" LOGIN PASSWORD 'secret'")
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		for _, statement := range []string{
			"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '" + database + "'",
			"DROP DATABASE " + database + " WITH (FORCE)", "DROP ROLE " + s.name,
		} {
			_, err := env.Pool.Exec(ctx, statement)
			assert.NoError(t, err)
		}
	})
	address, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	address.Path = "/" + database
	s.url = address.String()
	s.admin, s.conn = open(t, s.url), open(t, testenv.AsUser(t, s.url, s.name, "secret"))
	for _, statement := range []string{
		"SET search_path = pg_catalog", // the test's own
		`CREATE SCHEMA IF NOT EXISTS "` + schema + `"`, "GRANT CREATE, USAGE ON SCHEMA public TO PUBLIC",
		`GRANT CREATE, USAGE ON SCHEMA "` + schema + `" TO PUBLIC`,
	} {
		_, err := s.admin.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	s.exec(t, "CREATE SEQUENCE public.captured", "GRANT ALL ON SEQUENCE public.captured TO PUBLIC", "SET check_function_bodies = off", "SET search_path = pg_catalog")
	return s
}

func administer(t *testing.T, env *testenv.Env, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := env.Pool.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
}

func open(t *testing.T, address string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func (s *stranger) exec(t *testing.T, statements ...string) {
	t.Helper()
	const batch = 500
	for part := range slices.Chunk(statements, batch) {
		_, err := s.conn.Exec(t.Context(), strings.Join(part, ";\n"), pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
	}
}

// types are those of which overloads are made: what our statements pass to functions
// and operators, or is cast to it without a cast in the statement.
var types = []string{
	"text", "name", "varchar", "bpchar", `"char"`, "oid", "regclass", "int2", "int4", "int8", "numeric", "float8", "bool", "timestamptz",
	"date", "interval", "uuid", "json", "jsonb", "bytea", "pg_lsn", "xid", "text[]", "json[]", "pg_replication_slots",
}

// signatures are calls that fit a function of schema $1 with a name in $2, and better than
// it does: any type in the place of one that is polymorphic or of each single parameter;
// and without parameters that have defaults.
const signatures = `
	WITH f AS (
		SELECT p.oid, p.proname, p.proargtypes::oid[] AS args, p.pronargs::int AS n, p.pronargdefaults::int AS defaults, p.provariadic, p.prorettype, p.proretset
		FROM pg_proc AS p WHERE p.pronamespace = $1::regnamespace AND p.proname = ANY ($2::text[])
	), c AS (
		SELECT DISTINCT ON (proname, args) * FROM (
			SELECT f.proname, f.prorettype, f.proretset, t.oid AS t, t.typarray, (
				SELECT array_agg(CASE WHEN p.typname IN ('any', 'anyelement', 'anynonarray', 'anycompatible', 'anycompatiblenonarray') THEN t.oid
					WHEN p.typname IN ('anyarray', 'anycompatiblearray') THEN t.typarray
					WHEN a.n = i THEN t.oid ELSE a.type END ORDER BY a.n)
				FROM unnest(f.args || array_fill(f.provariadic, ARRAY[v])) WITH ORDINALITY AS a (type, n) JOIN pg_type AS p ON p.oid = a.type
				WHERE a.n <= k + v) AS args
			FROM f, unnest($3::regtype[]) AS u (type) JOIN pg_type AS t ON t.oid = u.type,
				generate_series(f.n - f.defaults, f.n) AS k, generate_series(0, CASE WHEN f.provariadic = 0 THEN 0 ELSE 2 END) AS v,
				generate_series(0, k) AS i) AS every
		ORDER BY proname, args
	)
	SELECT format('%I(%s)', proname, list), (CASE WHEN proretset THEN 'SETOF ' ELSE '' END) || result
	FROM (SELECT c.*, (SELECT string_agg(format_type(a.type, NULL), ', ' ORDER BY a.n) FROM unnest(c.args) WITH ORDINALITY AS a (type, n)) AS list,
			CASE r.typname WHEN 'anyelement' THEN format_type(c.t, NULL) WHEN 'anyarray' THEN format_type(c.typarray, NULL)
				ELSE format_type(CASE WHEN r.typtype = 'p' AND r.typname NOT IN ('void', 'record') OR r.oid >= 16384 THEN 'text'::regtype ELSE r.oid END, NULL) END AS result
		FROM c JOIN pg_type AS r ON r.oid = c.prorettype) AS named
	WHERE list IS NOT NULL AND result <> '-' AND 0 <> ALL (args) AND NOT EXISTS (SELECT FROM pg_type AS p WHERE p.oid = ANY (args) AND p.typtype = 'p')
	  AND NOT EXISTS (SELECT FROM pg_proc AS p WHERE p.pronamespace = $1::regnamespace AND p.proname = named.proname AND p.proargtypes::text = array_to_string(named.args, ' '))`

// plant makes overloads in schema into of the functions that catalog has in schema from.
func (s *stranger) plant(t *testing.T, catalog *pgx.Conn, from string, names []string, into string) {
	t.Helper()
	rows, err := catalog.Query(t.Context(), signatures, from, names, types)
	require.NoError(t, err)
	var signature, result string
	var statements []string
	_, err = pgx.ForEachRow(rows, []any{&signature, &result}, func() error {
		statements = append(statements, fmt.Sprintf(`CREATE FUNCTION "%s".%s RETURNS %s LANGUAGE plpgsql AS $$%s$$`, into, signature, result, s.trap(signature)))
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, statements)
	s.exec(t, statements...)
}

// trap is the body of a function that leaves a trace, which no rollback removes.
func (s *stranger) trap(what string) string {
	s.planted = append(s.planted, what)
	return fmt.Sprintf(" BEGIN PERFORM pg_catalog.setval('public.captured', %d); RAISE EXCEPTION 'captured'; END ", len(s.planted))
}

// plantOperators makes those that PostgreSQL does not have, between any two types.
func (s *stranger) plantOperators(t *testing.T, into string) {
	t.Helper()
	rows, err := s.admin.Query(t.Context(), `SELECT format_type(l, NULL), format_type(r, NULL), array_agg(o ORDER BY o)
		FROM unnest($1::regtype[]) AS l, unnest($1::regtype[]) AS r,
			unnest(ARRAY['=', '<>', '<', '<=', '>', '>=', '||', '->', '->>', '+', '-', '*', '/', '%', '~', '!~', '~~', '!~~']) AS o
		WHERE NOT EXISTS (SELECT FROM pg_operator WHERE oprname = o AND oprleft = l AND oprright = r)
		GROUP BY l, r`, types)
	require.NoError(t, err)
	var left, right string
	var names, statements []string
	_, err = pgx.ForEachRow(rows, []any{&left, &right, &names}, func() error {
		signature := fmt.Sprintf("captured_operator(%s, %s)", left, right)
		statements = append(statements, fmt.Sprintf(`CREATE FUNCTION "%s".%s RETURNS bool LANGUAGE plpgsql AS $$%s$$`, into, signature, s.trap(signature)))
		for _, name := range names {
			statements = append(statements, fmt.Sprintf(`CREATE OPERATOR "%s".%s (FUNCTION = "%s".captured_operator, LEFTARG = %s, RIGHTARG = %s)`,
				into, name, into, left, right))
		}
		return nil
	})
	require.NoError(t, err)
	s.exec(t, statements...)
}

// untouched demands that nothing of the stranger's was called since the last time.
func (s *stranger) untouched(t *testing.T, by string) {
	t.Helper()
	var called, super bool
	var last int
	require.NoError(t, s.admin.QueryRow(t.Context(), `SELECT c.is_called, c.last_value, r.rolsuper
		FROM public.captured AS c, pg_catalog.pg_roles AS r WHERE r.rolname = $1`, s.name).Scan(&called, &last, &super))
	if called {
		assert.Failf(t, "a stranger's function was called", "%s calls %s", by, s.planted[last-1])
		_, err := s.admin.Exec(t.Context(), "SELECT pg_catalog.setval('public.captured', 1, false)")
		require.NoError(t, err)
	}
	assert.Falsef(t, super, "the stranger is a superuser after %s", by)
}

var call = regexp.MustCompile(`\b([a-z_0-9]+)\(`)

// called lists what looks like a call in our sources.
func called(t *testing.T) []string {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	names := map[string]bool{}
	for _, folder := range []string{"migrations", "shared/event", "shared/postgres", "streamer", "api"} {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") || filepath.Ext(path) != ".go" && filepath.Ext(path) != ".sql" {
				return err
			}
			content, err := os.ReadFile(path)
			for _, match := range call.FindAllStringSubmatch(string(content), -1) {
				names[match[1]] = true
			}
			return err
		}))
	}
	list := make([]string, 0, len(names))
	for name := range names {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// ownFunctions lists those of the outbox and of the api.
func ownFunctions(t *testing.T, env *testenv.Env) (names []string) {
	t.Helper()
	require.NoError(t, env.Pool.QueryRow(t.Context(),
		"SELECT array_agg(DISTINCT proname::text) FROM pg_proc WHERE pronamespace = 'public'::regnamespace").Scan(&names))
	return names
}

// Functions and operators of a stranger that fit our calls better than PostgreSQL's own, or
// than ours, are called by no migration, no command, no view and none of our functions.
func TestNothingOfAStrangerIsCalled(t *testing.T) {
	for _, schema := range []string{"public", "Outbox"} {
		t.Run(schema, func(t *testing.T) {
			env := testenv.New(t)
			use(t, env)
			s := newStranger(t, env, schema)
			clean := open(t, env.PostgresURL)
			names := called(t)
			for _, into := range slices.Compact([]string{schema, "public"}) {
				s.plant(t, clean, "pg_catalog", names, into)
				s.plantOperators(t, into)
			}
			s.exec(t, "CREATE OR REPLACE FUNCTION public.to_jsonb(pg_catalog.pg_replication_slots) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN "+
				"IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN ALTER ROLE "+s.name+" SUPERUSER; END IF; "+
				"RETURN pg_catalog.jsonb_build_object(); END $$")
			t.Setenv("DATABASE_URL", s.url)
			t.Setenv("OUTBOX_SCHEMA", schema)
			s.victims(t, func() { s.plant(t, clean, "public", ownFunctions(t, env), schema) })
		})
	}
}

// victims runs every command; plantOurs plants what has the names of our functions.
func (s *stranger) victims(t *testing.T, plantOurs func()) {
	t.Helper()
	schema := event.Schema(s.schema)
	run := func(args ...string) {
		t.Helper()
		out, err := command(t, args...)
		s.untouched(t, strings.Join(args, " "))
		if _, findings := err.(exitCode); !findings { //nolint:errorlint // doctor's findings
			require.NoErrorf(t, err, "%s: %s", args, out)
		}
	}
	run("migrate", "up")
	require.NoError(t, migrations.API(schema).Up(t.Context(), postgres.Config{URL: s.url}, slog.New(slog.DiscardHandler)))
	s.untouched(t, "api migrate up")
	plantOurs()
	run("migrate", "up")
	s.publish(t, schema)
	s.deliver(t, func() {
		for _, args := range []string{
			"migrate status", "status", "doctor", "bookmark add kept", "bookmark list", "bookmark move kept", "replay --from-table",
			"replay --from-bookmark kept", "verify", "bookmark drop kept", "deadletter list",
		} {
			run(strings.Fields(args)...)
		}
	})
	s.maintain(t, schema)
	run("slot", "drop")
	run("slot", "create")
	run("uninstall", "--yes")
}

// publish writes events as a producer does, whose session finds the stranger's schemas first.
func (s *stranger) publish(t *testing.T, schema event.Schema) {
	t.Helper()
	ctx := t.Context()
	producer := s.name + "_producer"
	_, err := s.admin.Exec(ctx, "CREATE ROLE "+producer+" LOGIN PASSWORD 'secret' IN ROLE diehard_producer")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := s.admin.Exec(context.WithoutCancel(ctx), "DROP ROLE "+producer)
		assert.NoError(t, err)
	})
	conn := open(t, testenv.AsUser(t, s.url, producer, "secret"))
	outbox := event.Outbox{Schema: schema}
	for _, path := range []string{`"$user", public`, "public, pg_catalog"} {
		_, err := conn.Exec(ctx, "SELECT pg_catalog.set_config('search_path', $1, false)", path)
		require.NoError(t, err)
		require.NoError(t, outbox.Publish(ctx, conn, event.Event{Type: "t", Context: []byte("{}")}))
		require.NoError(t, outbox.Publish(ctx, conn, event.Event{Type: "t", Context: []byte("{}")}, event.Event{Type: "t", Context: []byte("{}")}))
		require.NoError(t, outbox.Publish(ctx, conn, event.Event{Type: "t", Context: []byte("{}"), IdempotencyKey: path}))
		s.untouched(t, "event.Publish with search_path "+path)
		for _, kind := range []string{"json", "jsonb", "text"} {
			for _, call := range []string{
				"publish_event('t'::text, '{}'::" + kind + ", 'e'::text, 1::bigint, NULL::text, now(), NULL::uuid, 'key'::text, 'again'::text)",
				`publish_events('[{"event_type": "t", "event_context": 1, "idempotency_key": "once"}]'::` + kind + ")",
			} {
				_, err := conn.Exec(ctx, schema.SQL("SELECT {outbox}."+call))
				require.NoError(t, err, call)
				s.untouched(t, call+" with search_path "+path)
			}
		}
	}
}

// deliver runs the streamer, and calls meanwhile once it delivers.
func (s *stranger) deliver(t *testing.T, meanwhile func()) {
	t.Helper()
	t.Setenv("STREAMER_ADDR", testenv.FreeAddress(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := runStreamer(ctx)
	await.True(t, func() bool {
		status, err := ops.AskStreamer(ctx, os.Getenv("STREAMER_ADDR"))
		return err == nil && status.Totals.Flushed > 0
	}, "the streamer never delivers")
	meanwhile()
	cancel()
	require.NoError(t, <-done)
	await.True(t, func() bool { // its walsender ends a moment later
		var active bool
		err := s.admin.QueryRow(t.Context(), "SELECT pg_catalog.bool_or(active) FROM pg_catalog.pg_replication_slots WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database()").Scan(&active)
		require.NoError(t, err)
		return !active
	}, "the slot stays in use")
	s.untouched(t, "run")
}

// maintain reads the views and calls the functions of maintenance, as an administrator
// whose session finds the stranger's schemas first.
func (s *stranger) maintain(t *testing.T, schema event.Schema) {
	t.Helper()
	pool := testenv.Pool(t, s.url, 0)
	maintainer := &retention.Maintainer{Postgres: pool, Schema: schema, Retention: time.Hour, Log: slog.New(slog.DiscardHandler)}
	_, err := maintainer.Step(t.Context())
	require.NoError(t, err)
	s.untouched(t, "retention")
	_, err = s.admin.Exec(t.Context(), "SELECT pg_catalog.set_config('search_path', 'public, pg_catalog', false)")
	require.NoError(t, err)
	for _, query := range []string{
		"TABLE {outbox}.slot_lag", "TABLE {outbox}.diehard_partitions", "TABLE {outbox}.diehard_events",
		"SELECT {outbox}.outbox_create_partitions(9, 20)", "SELECT {outbox}.outbox_retire_partitions('1 day'::interval, pg_catalog.now())",
		"SELECT {outbox}.outbox_confirmed()", "SELECT {outbox}.diehard_delete_keys()", "SELECT {outbox}.diehard_idempotency_keys_clean()",
		`INSERT INTO {outbox}.users (email) VALUES ('a@example.com')`,
	} {
		_, err := s.admin.Exec(t.Context(), schema.SQL(query))
		require.NoError(t, err, query)
		s.untouched(t, query)
	}
}
