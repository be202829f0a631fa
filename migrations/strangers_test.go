package migrations_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

// Where PUBLIC may create in the schema, a login without grants can make the version table
// before the migrations do: nothing that hangs on it runs with their rights.
func TestTheVersionTableOfAStrangerIsRefused(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	address := emptyDatabase(t, env, "squatted")
	admin := connect(t, address)
	name := env.Slot + "_squatter"
	exec := func(conn *pgx.Conn, statements ...string) {
		t.Helper()
		for _, statement := range statements {
			_, err := conn.Exec(t.Context(), statement)
			require.NoError(t, err, statement)
		}
	}
	exec(admin, "CREATE ROLE "+name+" LOGIN PASSWORD 'secret'", "GRANT CREATE ON SCHEMA public TO PUBLIC")
	t.Cleanup(func() {
		_, err := admin.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+name+"; DROP ROLE "+name)
		assert.NoError(t, err)
	})
	stranger := connect(t, testenv.AsUser(t, address, name, "secret"))
	exec(stranger, "CREATE SEQUENCE called", "GRANT ALL ON SEQUENCE called TO PUBLIC",
		"CREATE FUNCTION trap() RETURNS bigint LANGUAGE sql AS $$ SELECT pg_catalog.nextval('public.called') $$",
		"CREATE FUNCTION trap_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.trap(); RETURN NEW; END $$")
	for _, made := range []struct{ create, trap, drop string }{
		{"CREATE VIEW diehard_outbox_version AS SELECT public.trap() AS version_id, now() AS applied_at", "", "DROP VIEW diehard_outbox_version"},
		{
			"CREATE TABLE diehard_outbox_version (version_id bigint, applied_at timestamptz DEFAULT to_timestamp(public.trap()))",
			"CREATE TRIGGER t BEFORE INSERT ON diehard_outbox_version FOR EACH ROW EXECUTE FUNCTION trap_row()", "DROP TABLE diehard_outbox_version",
		},
	} {
		exec(stranger, made.create, made.trap)
		set, cfg := migrations.Outbox("", ""), postgres.Config{URL: address}
		assert.ErrorContains(t, set.Up(t.Context(), cfg, quiet), "public.diehard_outbox_version", made.create)
		_, _ = set.Status(t.Context(), cfg) // of the table it is an answer, of the view an error
		var called bool
		require.NoError(t, admin.QueryRow(t.Context(), "SELECT is_called FROM called").Scan(&called))
		assert.False(t, called, made.create)
		exec(stranger, made.drop)
	}
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: address}, quiet))
}
