package e2e

import (
	"database/sql"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // as database/sql's driver "pgx"
	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

// README, "In your application": from a database that has belonged to an application for
// years to the first event in ClickHouse, without the api. The owner is no superuser.

// application is a server with the database of an application.
type application struct {
	t                *testing.T
	admin            *testenv.Env // as superuser
	owner, app, sink string       // DATABASE_URL of the owner, of the application and of the streamer
}

// years are what the application has in the schema public.
const years = `
	CREATE TABLE users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text NOT NULL, CONSTRAINT users_email_key UNIQUE (email));
	CREATE TABLE outbox_default (id int PRIMARY KEY, note text);
	INSERT INTO outbox_default VALUES (1, 'the application''s own');
	CREATE TABLE orders (id bigint PRIMARY KEY, paid boolean NOT NULL DEFAULT false);
	INSERT INTO orders VALUES (42)`

func newApplication(t *testing.T) *application {
	t.Helper()
	env := *newEnv(t)
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "shop"})
	env.PostgresURL = engine.URL("shop")
	env.Pool = testenv.Pool(t, env.PostgresURL, 2)
	a := &application{t: t, admin: &env, owner: testenv.AsUser(t, env.PostgresURL, "owner", "secret")}
	execute(t, &env, "CREATE ROLE owner LOGIN CREATEROLE PASSWORD 'secret'")
	execute(t, &env, "ALTER DATABASE shop OWNER TO owner")
	execute(t, &env, "ALTER SCHEMA public OWNER TO owner")
	return a
}

// asOwner runs statements as the owner would in psql.
func (a *application) asOwner(statements string) {
	a.t.Helper()
	pool, err := pgxpool.New(a.t.Context(), a.owner)
	require.NoError(a.t, err)
	defer pool.Close()
	_, err = pool.Exec(a.t.Context(), statements)
	require.NoError(a.t, err, statements)
}

// migrate is `streamer migrate up` as the owner.
func (a *application) migrate() string {
	a.t.Helper()
	p := runArgs(a.t, a.admin, "streamer", []string{"migrate", "up"}, "DATABASE_URL="+a.owner, "LOG_FORMATTER=console")
	require.Zero(a.t, p.exit(), p.log.text())
	return p.log.text()
}

// logins are the README's two, made by the owner; REPLICATION is the administrator's to give.
func (a *application) logins() {
	a.t.Helper()
	a.asOwner("CREATE ROLE your_app LOGIN PASSWORD 'secret' IN ROLE diehard_producer; CREATE ROLE streamer LOGIN PASSWORD 'secret' IN ROLE diehard_streamer;" +
		"GRANT SELECT, UPDATE ON orders TO your_app")
	execute(a.t, a.admin, "ALTER ROLE streamer REPLICATION")
	a.app, a.sink = testenv.AsUser(a.t, a.admin.PostgresURL, "your_app", "secret"), testenv.AsUser(a.t, a.admin.PostgresURL, "streamer", "secret")
}

// stream starts the streamer with its own login.
func (a *application) stream() {
	a.t.Helper()
	doctor := runArgs(a.t, a.admin, "streamer", []string{"doctor"}, "DATABASE_URL="+a.sink)
	assert.NotEqual(a.t, 2, doctor.exit(), doctor.log.text())
	run(a.t, a.admin, "streamer", "DATABASE_URL="+a.sink).says("streaming")
}

// untouched demands that what the application had is as it was.
func (a *application) untouched() {
	a.t.Helper()
	var note string
	require.NoError(a.t, a.admin.Pool.QueryRow(a.t.Context(), "SELECT note FROM outbox_default").Scan(&note))
	assert.Equal(a.t, "the application's own", note)
	execute(a.t, a.admin, "INSERT INTO users (email) VALUES ('a@example.com')")
	var schemas []string
	require.NoError(a.t, a.admin.Pool.QueryRow(a.t.Context(), "SELECT array_agg(column_name::text ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name = 'users'").Scan(&schemas))
	assert.Equal(a.t, []string{"id", "email"}, schemas)
}

func TestAnExistingGoApplication(t *testing.T) {
	t.Parallel()
	a := newApplication(t)
	db, err := sql.Open("pgx", a.owner)
	require.NoError(t, err)
	defer db.Close()
	files := fstest.MapFS{"00001_shop.sql": {Data: []byte("-- +goose Up\n" + years + ";\n")}}
	migrated := func() int {
		provider, err := goose.NewProvider(goose.DialectPostgres, db, files)
		require.NoError(t, err)
		results, err := provider.Up(t.Context())
		require.NoError(t, err)
		return len(results)
	}
	require.Equal(t, 1, migrated())
	text := a.migrate()
	t.Log(text)
	assert.Contains(t, text, "migration=00002_outbox.sql")
	assert.NotContains(t, a.migrate(), "migrated", "nothing is left to do")
	files["00002_total.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nALTER TABLE orders ADD COLUMN total numeric;\n")}
	assert.Equal(t, 1, migrated(), "the application's goose counts for itself")
	a.logins()
	a.stream()

	app, err := sql.Open("pgx", a.app)
	require.NoError(t, err)
	defer app.Close()
	tx, err := app.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), "UPDATE orders SET paid = true WHERE id = $1", 42)
	require.NoError(t, err)
	type OrderPaid struct {
		Order int64 `json:"order"`
	}
	e, err := event.New(OrderPaid{Order: 42})
	require.NoError(t, err)
	require.NoError(t, event.Publish(t.Context(), event.SQL(tx), e))
	require.NoError(t, tx.Commit())
	paid(t, a.admin, 1)
	a.untouched()
}

// djangoMigrations runs the script of `streamer migrate sql` as a migration of Django's.
const djangoMigrations = `
import sys
from django.db import migrations
with connection.schema_editor() as editor:
    migrations.RunSQL(open(sys.argv[1]).read()).database_forwards("shop", editor, None, None)
print("migrated")
`

func TestAnExistingDjangoApplication(t *testing.T) {
	t.Parallel()
	interpreter := python(t, "django, psycopg2")
	for _, how := range []string{"migrate up", "RunSQL"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			a := newApplication(t)
			a.asOwner(years)
			a.asOwner("CREATE TABLE goose_db_version (another int)")
			if how == "RunSQL" {
				script := runArgs(t, a.admin, "streamer", []string{"migrate", "sql", "--all"}, "DATABASE_URL="+a.owner)
				require.Zero(t, script.exit(), script.log.text())
				file := t.TempDir() + "/outbox.sql"
				require.NoError(t, os.WriteFile(file, []byte(script.log.text()), 0o600))
				owner := *a.admin
				owner.PostgresURL = a.owner
				feed(t, &owner, djangoSetup+djangoMigrations, interpreter, "-", file)
			}
			text := a.migrate()
			t.Log(text)
			assert.Equal(t, how == "RunSQL", !strings.Contains(text, "migration=00002_outbox.sql"))
			a.logins()
			a.stream()
			app := *a.admin
			app.PostgresURL = a.app
			feed(t, &app, djangoSetup+snippet(t, "django"), interpreter, "-")
			paid(t, a.admin, 1)
			a.untouched()
			var columns int
			require.NoError(t, a.admin.Pool.QueryRow(t.Context(), "SELECT count(*) FROM information_schema.columns WHERE table_name = 'goose_db_version'").Scan(&columns))
			assert.Equal(t, 1, columns, "%s: the table is another program's", how)
		})
	}
}
