package clients_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// page is one program of a page. It publishes order_paid by a model, order_packed by the
// function, order_shipped for the orders 1 to shipped at once, and rolls order_lost back.
// It prints the message for an event that is refused.
type page struct {
	page, name string
	run        client
	form       string // of a context, as the library writes JSON
	shipped    int
	refused    string
}

const (
	spaced  = `{"order": %d}`
	compact = `{"order":%d}`
	refusal = "event_type must have 1 to 255 bytes"
)

func pages() []page {
	return []page{
		{"sqlalchemy.md", "sqlalchemy", python("sqlalchemy, psycopg2"), spaced, 3, refusal},
		{"sqlalchemy.md", "psycopg", python("psycopg"), spaced, 7, "events[3]." + refusal},
		{"sqlalchemy.md", "asyncpg", python("asyncpg"), spaced, 5, refusal},
		{"django.md", "django", django, spaced, 3, refusal},
		{"node.md", "pg", node, compact, 3, refusal},
		{"node.md", "postgres", node, compact, 4, refusal},
		{"node.md", "prisma", typescript(prismaClient), compact, 3, refusal},
		{"node.md", "drizzle", node, compact, 3, refusal},
		{"node.md", "knex", node, compact, 3, refusal},
		{"node.md", "sequelize", node, compact, 3, refusal},
		{"node.md", "typeorm", typescript(nothing), compact, 3, refusal},
		{"ruby.md", "activerecord", ruby("active_record", "pg"), compact, 3, refusal},
		{"ruby.md", "sequel", ruby("sequel", "pg"), compact, 3, refusal},
		{"jvm.md", "jdbc", java("postgresql.jar", nil), spaced, 3, refusal},
		{"jvm.md", "jpa", java("eclipselink.jar", persistence), spaced, 3, refusal},
		{"php.md", "pdo", php("pdo_pgsql", "", ""), compact, 3, refusal},
		{"php.md", "doctrine", php("pdo_pgsql", "Doctrine/DBAL/autoload.php", "require_once 'Doctrine/DBAL/autoload.php';"), compact, 3, refusal},
		{"php.md", "laravel", php("pdo_pgsql", "Illuminate/autoload.php", laravel), compact, 3, refusal},
		{"go.md", "libpq", golang, compact, 3, refusal},
		{"go.md", "gorm", golang, compact, 3, refusal},
		{"go.md", "bun", golang, compact, 3, refusal},
		{"go.md", "sqlc", sqlc, compact, 3, refusal},
	}
}

// wanted skips a test that make test-clients does not run.
func wanted(t *testing.T) {
	t.Helper()
	if os.Getenv(runClients) == "" {
		t.Skip("make test-clients runs the pages")
	}
}

// The code of each page runs as it stands there, as a login that may publish and nothing
// else, and ClickHouse has exactly the bytes that it published.
func TestThePagesPublish(t *testing.T) {
	t.Parallel()
	wanted(t)
	for _, p := range pages() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			code := program(t, p.page, p.name)
			env := testenv.New(t)
			environ := shop(t, env)
			stream(t, env)
			printed := p.run(t, code, environ)
			assert.Contains(t, printed, p.refused)
			want := []string{"order_paid " + fmt.Sprintf(p.form, 42), "order_packed " + fmt.Sprintf(p.form, 42)}
			for n := 1; n <= p.shipped; n++ {
				want = append(want, "order_shipped "+fmt.Sprintf(p.form, n))
			}
			arrived(t, env, want)
			var paid bool
			require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT paid FROM orders WHERE id = 42").Scan(&paid))
			assert.True(t, paid, "in the same transaction")
		})
	}
}

// What a page warns of happens, and what it says instead publishes.
func TestWhatThePagesWarnOf(t *testing.T) {
	t.Parallel()
	wanted(t)
	for _, p := range []struct {
		page, name string
		run        client
		code       string // in place of the page's: PAGE is its first block, MANY the one with publish_events
		want       []string
	}{
		// Rails keeps the results of queries during a request.
		{"ruby.md", "activerecord", ruby("active_record", "pg"), `PAGE
			ActiveRecord::Base.cache do
				2.times { MANY }
				2.times { Order.connection.select_value("SELECT publish_event('kept', '{}')") }
			end
			class Row < ActiveRecord::Base
				self.table_name = "diehard_events"
			end
			Row.insert_all!([{ event_type: "row", event_context: { n: 1 } }, { event_type: "row", event_context: { n: 2 } }])`, append(append([]string{`order_paid {"order":42}`}, slices.Repeat([]string{`order_shipped {"order":1}`, `order_shipped {"order":2}`, `order_shipped {"order":3}`}, 2)...), "kept {}", `row {"n":1}`, `row {"n":2}`)},
		{"sqlalchemy.md", "sqlalchemy", python("sqlalchemy, psycopg2"), `PAGE
from sqlalchemy import text
from sqlalchemy.orm.exc import ObjectDeletedError
for expire in True, False:
    with Session(engine, expire_on_commit=expire) as session:
        event = Event(event_type="read_back", event_context={})
        session.add(event)
        session.commit()
        try:
            print(event.id)
            assert not expire
        except ObjectDeletedError:
            assert expire
for begin in engine.connect, engine.begin:
    with begin() as conn:
        conn.execute(text("SELECT publish_event(:type, '{}')"), {"type": begin.__name__})
connection = engine.raw_connection()
with connection.cursor() as cursor:
    from psycopg2.extras import Json, execute_values
    rows = [("order_shipped", Json({"order": n})) for n in (1, 2)]
    ids = execute_values(cursor, "INSERT INTO diehard_events (event_type, event_context) VALUES %s RETURNING id", rows, fetch=True)
    assert len(ids) == 2
    cursor.execute("SELECT publish_events(%s)", [Json([{"event_type": "order_shipped", "event_context": {"order": 3}}])])
connection.commit()`, []string{
			`order_paid {"order": 42}`, "read_back {}", "read_back {}", "begin {}",
			`order_shipped {"order": 1}`, `order_shipped {"order": 2}`, `order_shipped {"order": 3}`,
		}},
		{"jvm.md", "jdbc", java("postgresql.jar", nil), `import java.sql.*;
			class Page {
				public static void main(String[] args) throws SQLException {
					try (Connection connection = DriverManager.getConnection(System.getenv("JDBC_URL"));
							PreparedStatement publish = connection.prepareStatement("SELECT publish_event('published', '{}')")) {
						publish.executeUpdate();
						throw new AssertionError("accepted");
					} catch (SQLException error) {
						System.out.println(error.getMessage()); // A result was returned when none was expected.
					}
				}
			}`, []string{"published {}"}},
		{"node.md", "pg", node, `import pg from "pg";
			const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
			await pool.query("SELECT publish_event('parameter', $1)", [[]]);
			await pool.query("SELECT publish_event('text', $1)", [JSON.stringify([])]);
			await pool.query("SELECT publish_event('more', $1)", [[1, 2]]).catch((error) => console.log(error.message));
			await pool.end();`, []string{"parameter {}", "text []"}},
	} {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			list := blocks(t, p.page, p.name)
			many := slices.IndexFunc(list, func(block string) bool { return strings.Contains(block, "SELECT publish_events(") })
			code := strings.Replace(p.code, "PAGE", list[0], 1)
			if many >= 0 {
				code = strings.Replace(code, "MANY", list[many], 1)
			}
			env := testenv.New(t)
			environ := shop(t, env)
			stream(t, env)
			p.run(t, code, environ)
			arrived(t, env, p.want)
		})
	}
}

// The types that are made of the api's description compile with the page's program, which
// publishes through a running api.
func TestTheTypesOfTheAPIPublish(t *testing.T) {
	t.Parallel()
	wanted(t)
	code := program(t, "node.md", "http")
	env := testenv.New(t)
	stream(t, env)
	environ := append(os.Environ(), "API_URL="+serve(t, env))
	printed := typescript(apiTypes)(t, code, environ)
	assert.Contains(t, printed, "422 { field: 'event_type'")
	arrived(t, env, []string{`order_shipped {"order":1}`, `order_shipped {"order":2}`, `order_shipped {"order":3}`})
	var keyed int
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM outbox WHERE right(id::text, 2) = right(event_id_for('order 42')::text, 2)").Scan(&keyed))
	assert.Equal(t, 3, keyed, "the key decides the last byte")
	assert.Contains(t, typescript(apiTypes)(t, code, environ), "422", "sent again")
	assert.Len(t, events(t, env), 3)
}
