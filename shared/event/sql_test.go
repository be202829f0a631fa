package event_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

// plain is a driver that knows no more than database/sql demands of one: what
// pgx adds (types of its own as arguments) is hidden.
type plain struct{ driver.Connector }

func (p plain) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return plainConn{conn.(*stdlib.Conn)}, nil
}

type plainConn struct{ conn *stdlib.Conn }

func (c plainConn) Prepare(query string) (driver.Stmt, error) { return c.conn.Prepare(query) }
func (c plainConn) Close() error                              { return c.conn.Close() }
func (c plainConn) Begin() (driver.Tx, error) {
	return c.conn.BeginTx(context.Background(), driver.TxOptions{})
}

func (c plainConn) ExecContext(ctx context.Context, query string, arguments []driver.NamedValue) (driver.Result, error) {
	return c.conn.ExecContext(ctx, query, arguments)
}

// openSQL opens the test's database through database/sql, in every way that drivers differ in.
func openSQL(t *testing.T, env *testenv.Env) map[string]*sql.DB {
	t.Helper()
	all := make(map[string]*sql.DB)
	for name, mode := range map[string]pgx.QueryExecMode{
		"prepared": pgx.QueryExecModeCacheStatement, "described by the client": pgx.QueryExecModeExec, "simple protocol": pgx.QueryExecModeSimpleProtocol,
	} {
		config, err := pgx.ParseConfig(env.PostgresURL)
		require.NoError(t, err)
		config.DefaultQueryExecMode = mode
		all[name] = sql.OpenDB(stdlib.GetConnector(*config))
		all[name+", plain driver"] = sql.OpenDB(plain{stdlib.GetConnector(*config)})
	}
	for _, db := range all {
		t.Cleanup(func() { assert.NoError(t, db.Close()) })
	}
	return all
}

func TestDatabaseSQLStoresEveryFieldInEveryMode(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	awkward := full(7)
	awkward.Type, awkward.Environment = `a "quoted", {braced} \ type`, "NULL"
	awkward.Context = json.RawMessage("{\"a\\\"\\\\\" : \"\\u0000 'x' \U0001F600\",\n \"b\":\"{,}\"}")
	for name, db := range openSQL(t, env) {
		want := []event.Event{full(1), full(2), awkward}
		want[1].TraceContext, want[1].Environment = "", ""
		require.NoError(t, event.Publish(t.Context(), event.SQL(db), want[0]), name)
		require.NoError(t, event.Publish(t.Context(), event.SQL(db), want[1:]...), name)
		assert.Equal(t, want, stored(t, env.Pool), name)
		_, err := db.ExecContext(t.Context(), "TRUNCATE outbox")
		require.NoError(t, err)
	}
}

// PostgreSQL rounds a text with more digits than it stores, and binary values are cut off.
func TestATimeIsTheSameByEveryWay(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	e := full(1)
	want := e.DateTime
	for _, more := range []time.Duration{1, 500, 999} {
		e.DateTime = want.Add(more)
		require.NoError(t, event.Publish(t.Context(), env.Pool, e))
		require.NoError(t, event.Publish(t.Context(), env.Pool, e, e))
		for _, db := range openSQL(t, env) {
			require.NoError(t, event.Publish(t.Context(), event.SQL(db), e))
		}
	}
	for _, row := range stored(t, env.Pool) {
		assert.Equal(t, want, row.DateTime)
	}
}

func TestDatabaseSQLFollowsTheTransaction(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	db := openSQL(t, env)["prepared"]
	for _, commit := range []bool{false, true} {
		tx, err := db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		require.NoError(t, event.Publish(t.Context(), event.SQL(tx), full(1), full(2)))
		if commit {
			require.NoError(t, tx.Commit())
		} else {
			require.NoError(t, tx.Rollback())
		}
	}
	conn, err := db.Conn(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, event.Publish(t.Context(), event.SQL(conn), full(3)))
	assert.Len(t, stored(t, env.Pool), 3)
}

func TestDatabaseSQLFailuresAreErrPublishWithTheirCause(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	db := openSQL(t, env)["prepared"]
	require.ErrorIs(t, event.Publish(t.Context(), event.SQL(db), event.Event{}), event.ErrInvalid)
	_, err := env.Pool.Exec(t.Context(), "ALTER TABLE outbox ADD CONSTRAINT closed CHECK (false) NOT VALID")
	require.NoError(t, err)
	requireConstraint(t, event.Publish(t.Context(), event.SQL(db), full(1)))
}

func TestDatabaseSQLTakesThousandsAtOnce(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	many := make([]event.Event, 5000)
	for i := range many {
		many[i] = full(i)
	}
	require.NoError(t, event.Publish(t.Context(), event.SQL(openSQL(t, env)["simple protocol"]), many...))
	assert.Equal(t, many, stored(t, env.Pool))
}
