package migrations_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// A role that may create in schema public can offer functions that fit our calls better
// than PostgreSQL's own. Ours run with the rights of their owner.
func TestOurFunctionsIgnoreForeignOverloads(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	conn := connect(t, env.PostgresURL)
	mallory := env.Slot + "_mallory"
	for _, statement := range []string{
		"CREATE ROLE " + mallory, "GRANT CREATE, USAGE ON SCHEMA public TO " + mallory,
		"CREATE TABLE stolen (who text)", "GRANT INSERT ON stolen TO PUBLIC",
		"SET ROLE " + mallory,
		overload("to_char(date, text)", "text", "pg_catalog.to_char($1::timestamp, $2)"),
		overload("convert_to(text, text)", "bytea", "pg_catalog.convert_to($1, 'UTF8')"),
		overload("octet_length(character varying)", "int", "1"),
		"RESET ROLE",
		"INSERT INTO diehard_slot (slot_name, messages) VALUES ('s', true)",
		"SELECT outbox_create_partitions(10)", "SELECT outbox_retire_partitions('1 day')", "SELECT diehard_idempotency_keys_clean()",
		"SELECT publish_event_message('t', '{}')",
	} {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+mallory+"; DROP ROLE "+mallory)
		assert.NoError(t, err)
	})
	var victims int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM stolen").Scan(&victims))
	assert.Zero(t, victims)

	// Those in SQL-standard form, which are bound when they are made, need no path; nor does the
	// constraint: see TestTheConstraintIgnoresThePathOfWhoInserts.
	rows, err := conn.Query(t.Context(), `SELECT p.oid::regprocedure::text FROM pg_proc AS p JOIN pg_roles AS r ON r.oid = p.proowner
		WHERE pronamespace = 'public'::regnamespace AND rolname <> $1 AND prosqlbody IS NULL AND proname <> 'diehard_check_event'
		  AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)`, mallory)
	require.NoError(t, err)
	open, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	assert.Empty(t, open)
}

// The function of the constraint has no search_path of its own, which would cost as much as
// half of it. Who inserts cannot put operators and functions in the place of PostgreSQL's.
func TestTheConstraintIgnoresThePathOfWhoInserts(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	conn := connect(t, env.PostgresURL)
	for _, statement := range []string{
		"CREATE SCHEMA mine",
		"CREATE FUNCTION mine.yes(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true",
		"CREATE FUNCTION mine.no(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN false",
		"CREATE FUNCTION mine.no(int, int) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN false",
		"CREATE FUNCTION mine.octet_length(text) RETURNS int LANGUAGE sql IMMUTABLE RETURN 1",
		"CREATE FUNCTION mine.split_part(text, text, int) RETURNS text LANGUAGE sql IMMUTABLE RETURN 'mine'",
		"CREATE FUNCTION mine.replace(text, text, text) RETURNS text LANGUAGE sql IMMUTABLE RETURN 'mine'",
		"CREATE OPERATOR mine.~ (LEFTARG = text, RIGHTARG = text, FUNCTION = mine.yes)",
		"CREATE OPERATOR mine.!~ (LEFTARG = text, RIGHTARG = text, FUNCTION = mine.yes)",
		"CREATE OPERATOR mine.= (LEFTARG = text, RIGHTARG = text, FUNCTION = mine.no)",
		"CREATE OPERATOR mine.> (LEFTARG = int, RIGHTARG = int, FUNCTION = mine.no)",
		"SET search_path = mine, pg_catalog, public",
	} {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	for values, column := range map[string]string{
		`' ', '', 'me'`:               "event_type",
		`'t', E'\n', 'me'`:            "environment",
		`'t', '', ''`:                 "published_by",
		`'t', '', repeat('x', 256)`:   "published_by",
		`'t', repeat('x', 256), 'me'`: "environment",
	} {
		_, err := conn.Exec(t.Context(), "INSERT INTO public.outbox (event_context, event_type, environment, published_by) VALUES ('{}', "+values+")")
		requireCode(t, "23514", err)
		var violation *pgconn.PgError
		require.ErrorAs(t, err, &violation)
		assert.Equal(t, column, violation.ColumnName, values)
	}
}

// overload is a function that does what it is called for, and more.
func overload(signature, result, value string) string {
	return "CREATE FUNCTION public." + signature + " RETURNS " + result +
		" LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.stolen VALUES (current_user); RETURN " + value + "; END $$"
}

// Cleaning that waits for a lock beyond midnight finds that tomorrow has become today.
func TestKeysOfTodayAreNotCleanedAtMidnight(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	conn, other := connect(t, env.PostgresURL), connect(t, env.PostgresURL)
	var definition string
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT pg_get_functiondef('diehard_idempotency_keys_clean()'::regprocedure)").Scan(&definition))
	slow := strings.NewReplacer("diehard_idempotency_keys_clean()", "slow_clean()", "'50ms'", "'60s'",
		"clock_timestamp()", "(SELECT at FROM public.clock)", "now()", "(SELECT at FROM public.clock)").Replace(definition)
	const insert = "INSERT INTO diehard_idempotency_keys (key, request, first_id, turn) VALUES (sha256(''), sha256(''), gen_random_uuid(), 1)"
	for _, statement := range []string{
		"CREATE TABLE clock (at timestamptz)", "INSERT INTO clock VALUES ('1970-01-01 23:59:59+00')", slow,
		insert, // of the day before yesterday
		"BEGIN", insert,
	} {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	type answer struct {
		cleaned bool
		err     error
	}
	answered := make(chan answer, 1)
	go func() {
		var a answer
		a.err = other.QueryRow(t.Context(), "SELECT slow_clean()").Scan(&a.cleaned)
		answered <- a
	}()
	await.True(t, func() bool {
		var waits bool
		err := env.Pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", other.PgConn().PID()).Scan(&waits)
		return err == nil && waits
	}, "the session waits")
	_, err := env.Pool.Exec(t.Context(), "UPDATE clock SET at = '1970-01-02 00:00:01+00'")
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "COMMIT")
	require.NoError(t, err)
	a := <-answered
	require.NoError(t, a.err)
	assert.False(t, a.cleaned)
	var keys int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM diehard_idempotency_keys").Scan(&keys))
	assert.Equal(t, 2, keys)
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT slow_clean()").Scan(&a.cleaned))
	assert.False(t, a.cleaned, "turn 2 is empty")
	_, err = conn.Exec(t.Context(), "UPDATE clock SET at = '1970-01-04 12:00:00+00'")
	require.NoError(t, err)
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT slow_clean()").Scan(&a.cleaned))
	assert.True(t, a.cleaned, "when it is tomorrow's again")
}
