package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// recipe is a block of the section Triggers of shared/event/clients/README.md.
func recipe(t *testing.T, name string) string {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	page, err := os.ReadFile(filepath.Join(root, "shared", "event", "clients", "README.md"))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(page), "<!-- triggers: "+name+" -->\n```sql\n")
	require.True(t, found, name)
	code, _, found := strings.Cut(rest, "\n```")
	require.True(t, found)
	return code
}

// triggered is a database with orders of customers. The owner of both may publish; the
// writer may write to both and nothing else.
type triggered struct {
	*testenv.Env
	owner, writer *pgx.Conn
}

func withOrders(t *testing.T) *triggered {
	t.Helper()
	env := newEnv(t)
	owner, writer := env.Slot+"_owner", env.Slot+"_writer"
	for _, statement := range []string{
		"CREATE ROLE " + owner + " LOGIN PASSWORD 'x' IN ROLE diehard_producer", "CREATE ROLE " + writer + " LOGIN PASSWORD 'x'",
		"CREATE TABLE customers (id bigint PRIMARY KEY)",
		"CREATE TABLE orders (id bigint PRIMARY KEY, paid boolean NOT NULL DEFAULT false, note text, customer bigint REFERENCES customers ON DELETE CASCADE)",
		"ALTER TABLE customers OWNER TO " + owner, "ALTER TABLE orders OWNER TO " + owner,
		"GRANT INSERT, UPDATE, DELETE, SELECT ON customers, orders TO " + writer,
		"GRANT CREATE ON SCHEMA public TO " + owner,
	} {
		execute(t, env, statement)
	}
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+owner+", "+writer+"; DROP ROLE "+owner+", "+writer)
		assert.NoError(t, err)
	})
	start(t, env)
	connect := func(user string) *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), testenv.AsUser(t, env.PostgresURL, user, "x"))
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
		return conn
	}
	return &triggered{env, connect(owner), connect(writer)}
}

// install runs a recipe of the page as the owner of the tables.
func (d *triggered) install(t *testing.T, recipe string) {
	t.Helper()
	_, err := d.owner.Exec(t.Context(), recipe)
	require.NoError(t, err)
}

// write runs statements as the writer, each a transaction.
func (d *triggered) write(t *testing.T, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := d.writer.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
}

// arrived demands exactly these contexts of an event type, in order.
func (d *triggered) arrived(t *testing.T, kind string, contexts ...string) {
	t.Helper()
	awaitRows(t, d.Env, len(contexts))
	var rows []logRow
	require.NoError(t, d.ClickHouse.Select(t.Context(), &rows, "SELECT * FROM event_log ORDER BY commit_lsn, commit_seq"))
	var got []string
	for _, row := range rows {
		assert.Equal(t, kind, row.Type)
		got = append(got, row.Context)
	}
	assert.Equal(t, contexts, got)
}

func TestARowTriggerPublishes(t *testing.T) {
	t.Parallel()
	d := withOrders(t)
	d.install(t, recipe(t, "row"))
	d.write(t, "INSERT INTO customers VALUES (1)", "INSERT INTO orders (id, customer) VALUES (42, 1), (43, 1)",
		"UPDATE orders SET note = 'not published'", "UPDATE orders SET paid = true WHERE id = 42",
		"BEGIN; DELETE FROM orders; ROLLBACK", "DELETE FROM orders WHERE id = 43",
		"DELETE FROM customers") // cascades
	// A copy is not published again, unless that is wanted.
	execute(t, d.Env, "SET session_replication_role = replica; INSERT INTO orders (id) VALUES (50); RESET session_replication_role")
	execute(t, d.Env, "ALTER TABLE orders ENABLE ALWAYS TRIGGER orders_changed")
	execute(t, d.Env, "SET session_replication_role = replica; INSERT INTO orders (id) VALUES (51); RESET session_replication_role")
	d.arrived(
		t, "order_changed",
		`{"operation" : "INSERT", "id" : 42, "was_paid" : null, "paid" : false}`,
		`{"operation" : "INSERT", "id" : 43, "was_paid" : null, "paid" : false}`,
		`{"operation" : "UPDATE", "id" : 42, "was_paid" : false, "paid" : true}`,
		`{"operation" : "DELETE", "id" : 43, "was_paid" : false, "paid" : null}`,
		`{"operation" : "DELETE", "id" : 42, "was_paid" : true, "paid" : null}`,
		`{"operation" : "INSERT", "id" : 51, "was_paid" : null, "paid" : false}`,
	)
	_, err := d.writer.Exec(t.Context(), "SELECT publish_event('t', '{}')")
	require.ErrorContains(t, err, "permission denied", "who writes may not publish")
	_, err = d.writer.Exec(t.Context(), "CREATE TEMP TABLE trap (id bigint, paid boolean); CREATE TRIGGER t AFTER INSERT ON trap FOR EACH ROW EXECUTE FUNCTION public.publish_order_change()")
	require.ErrorContains(t, err, "permission denied", "nor use the function for another table")
}

func TestAStatementTriggerPublishes(t *testing.T) {
	t.Parallel()
	d := withOrders(t)
	d.install(t, recipe(t, "statement"))
	d.write(t, "INSERT INTO orders (id) SELECT generate_series(1, 3)", "UPDATE orders SET note = 'x'", "UPDATE orders SET paid = true WHERE id <> 2",
		"UPDATE orders SET paid = true", "UPDATE orders SET paid = true WHERE false")
	d.arrived(
		t, "order_paid",
		`{"id":1,"paid":true,"note":"x","customer":null}`, `{"id":3,"paid":true,"note":"x","customer":null}`,
		`{"id":2,"paid":true,"note":"x","customer":null}`,
	)
}

func TestADeferredTriggerPublishes(t *testing.T) {
	t.Parallel()
	d := withOrders(t)
	d.install(t, recipe(t, "deferred"))
	d.write(t, "BEGIN; INSERT INTO orders (id) VALUES (1), (2); UPDATE orders SET paid = true; DELETE FROM orders WHERE id = 2; COMMIT",
		"BEGIN; INSERT INTO orders (id) VALUES (3); ROLLBACK")
	d.arrived(t, "order_placed", `{"id":1,"paid":true,"note":null,"customer":null}`)
}
