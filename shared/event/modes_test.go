package event_test

import (
	"database/sql"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/event"
)

// Behind a pooler pgx must not prepare statements, and then does not know the types of
// parameters. Every way of publishing holds in each mode, with pools, connections,
// transactions and database/sql.
func TestPublishInEveryModeOfPGX(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			env := listening(t)
			config, err := pgxpool.ParseConfig(env.PostgresURL)
			require.NoError(t, err)
			config.ConnConfig.DefaultQueryExecMode = mode
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			require.NoError(t, err)
			defer pool.Close()
			conn, err := pgx.ConnectConfig(t.Context(), config.ConnConfig)
			require.NoError(t, err)
			defer conn.Close(t.Context())
			db := stdlib.OpenDB(*config.ConnConfig)
			defer db.Close()

			var want []event.Event
			publish := func(db event.DB) {
				one, more := full(len(want)), []event.Event{full(len(want) + 1), full(len(want) + 2)}
				require.NoError(t, event.Publish(t.Context(), db, one))
				require.NoError(t, event.Publish(t.Context(), db, more...))
				want = append(append(want, one), more...)
			}
			publish(pool)
			publish(conn)
			publish(event.SQL(db))
			require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { publish(tx); return nil }))
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{})
			require.NoError(t, err)
			publish(event.SQL(tx))
			require.NoError(t, tx.Commit())

			var batch pgx.Batch
			queued := full(len(want))
			require.NoError(t, event.Queue(&batch, queued))
			require.NoError(t, event.QueueMessages(&batch, queued))
			require.NoError(t, pool.SendBatch(t.Context(), &batch).Close())
			want = append(want, queued)
			require.NoError(t, event.PublishMessages(t.Context(), pool, queued, queued))
			require.NoError(t, event.PublishMessages(t.Context(), event.SQL(db), queued))
			assert.Equal(t, want, stored(t, env.Pool))
			assert.Len(t, messages(t, env), 4)

			many := make([]event.Event, 1200) // COPY
			for i := range many {
				many[i] = full(i)
			}
			require.NoError(t, event.Publish(t.Context(), pool, many...))
			assert.Len(t, stored(t, env.Pool), len(want)+len(many))
		})
	}
}

// What one way of SQL refuses all refuse, and publish_events says which event. The ways of
// other programs are in package e2e.
func TestEveryWayOfSQLRefusesTheSame(t *testing.T) {
	t.Parallel()
	env := listening(t)
	for _, c := range []struct{ field, value, says string }{
		{"event_type", `' '`, "event_type must not have control characters, or spaces at its ends"},
		{"event_type", `E'a\nb'`, "event_type must not have control characters, or spaces at its ends"},
		{"event_type", `''`, "event_type must have 1 to 255 bytes"},
		{"event_type", `repeat('x', 256)`, "event_type must have 1 to 255 bytes"},
		{"event_type", `U&'a\0085'`, "event_type must not have control characters, or spaces at its ends"},
		{"environment", `repeat('x', 256)`, "environment must have at most 255 bytes"},
		{"environment", `E'a\tb'`, "environment must not have control characters"},
		{"metadata_version", `0`, "metadata_version must be 1 or more"},
		{"metadata_version", `-1`, "metadata_version must be 1 or more"},
		{"trace_context", `'garbage'`, "trace_context must be a W3C traceparent of version 00"},
		{"trace_context", `repeat('x', 1000000)`, "trace_context must be a W3C traceparent of version 00"},
		{"trace_context", `'00-00000000000000000000000000000000-00f067aa0ba902b7-01'`, "trace_context must be a W3C traceparent of version 00"},
		{"event_date_time", `'infinity'`, "event_date_time must be between the years 1900 and 2299"},
		{"event_date_time", `'1899-12-31'`, "event_date_time must be between the years 1900 and 2299"},
		{"event_date_time", `'2300-01-02'`, "event_date_time must be between the years 1900 and 2299"},
	} {
		columns, values := "event_context, "+c.field, "'{}', "+c.value
		arguments := c.field + " => " + c.value + ", event_context => '{}'"
		object := "'event_context', 1, '" + c.field + "', " + c.value
		if c.field != "event_type" {
			columns, values = columns+", event_type", values+", 't'"
			arguments += ", event_type => 't'"
			object += ", 'event_type', 't'"
		}
		batch := "SELECT publish_events(json_build_array(json_build_object('event_type', 'good', 'event_context', 1), json_build_object(" + object + ")))"
		for statement, says := range map[string]string{
			"INSERT INTO outbox (" + columns + ") VALUES (" + values + ")":         "invalid event: " + c.says,
			"INSERT INTO diehard_events (" + columns + ") VALUES (" + values + ")": "invalid event: " + c.says,
			"SELECT publish_event(" + arguments + ")":                              "invalid event: " + c.says,
			"SELECT publish_event_message(" + arguments + ")":                      "invalid event: " + c.says,
			batch: "events[1]." + c.says,
		} {
			_, err := env.Pool.Exec(t.Context(), statement)
			assert.ErrorContains(t, err, says, statement)
		}
	}
	for array, says := range map[string]string{
		`[{"event_type": "t", "event_context": 1, "misspelt": "x"}]`:                                                                  "events[0].misspelt",
		`[{"event_type": "t", "event_type": "u", "event_context": 1}]`:                                                                "events[0].event_type is given twice",
		`[{"event_type": "t", "event_context": 1}, {"event_type": "t"}]`:                                                              "events[1].event_context is missing",
		`[{"event_type": "t", "event_context": 1}, 7]`:                                                                                "events[1]: must be an object",
		`[{"event_type": "t", "event_context": 1}, [1]]`:                                                                              "events[1]: must be an object",
		`[{"event_type": {"a": 1}, "event_context": 1}]`:                                                                              "events[0].event_type must be a string",
		`[{"event_type": "t", "event_context": 1}, {"event_type": "t", "event_context": 1, "environment": 7}]`:                        "events[1].environment must be a string",
		`[{"event_type": "t", "event_context": 1, "event_date_time": "soon"}]`:                                                        `events[0].event_date_time: invalid input syntax for type timestamp with time zone: "soon"`,
		`[{"event_type": "t", "event_context": 1, "event_date_time": [2026, 11, 30]}]`:                                                "events[0].event_date_time must be a string",
		`[{"event_type": "t", "event_context": 1, "Misspelt": 1}]`:                                                                    `events[0]."Misspelt" is not a field of an event`,
		`[{"event_type": "t", "event_context": 1}, {"event_type": "t", "event_context": "` + strings.Repeat("x", 1<<20) + `"}]`:       "events[1].event_context must have at most 1048576 bytes",
		`[{"event_type": "t", "event_context": 1}, {"event_type": "t", "event_context": "` + strings.Repeat(`\/`, 1<<19) + `"}]`:      "events[1].event_context must have at most 1048576 bytes",
		`[{"event_type": "t", "event_context": 1}, {"event_type": "t", "event_context": {"a":"` + strings.Repeat("x", 1<<20) + `"}}]`: "events[1].event_context must have at most 1048576 bytes",
		`[{"event_type": "t", "event_context": 1, "event_id": "7"}]`:                                                                  "events[0].event_id: invalid",
		`[{"event_type": "t", "event_context": 1, "metadata_version": 1.5}]`:                                                          "events[0].metadata_version: invalid",
		`[{"event_type": "t", "event_context": 1, "metadata_version": "2"}]`:                                                          "events[0].metadata_version must be a number",
		`[{"event_type": "t", "event_context": 1}, {"event_type": "t", "event_context": 1, "idempotency_key": ""}]`:                   "events[1].idempotency_key must have 1 to 255 bytes",
		`[{"event_type": "t", "event_context": 1, "idempotency_key": "a\tb"}]`:                                                        "events[0].idempotency_key must not have control characters",
		`[{"event_type": "t", "event_context": 1}, {"event_type": "t", "metadata_version": "x"}]`:                                     "events[1].metadata_version",
		`{}`: "must be an array",
	} {
		_, err := env.Pool.Exec(t.Context(), "SELECT publish_events($1)", array)
		assert.ErrorContains(t, err, says, array)
	}
	for array, says := range map[string]string{
		`ARRAY['{"event_type": "t", "event_context": 1}', NULL]`:                 "events[1]: must be an object",
		`ARRAY['{"event_type": "t", "event_context": 1}', '{"event_type": ""}']`: "events[1].event_type must have 1 to 255 bytes",
		`NULL::json[]`: "must be an array",
	} {
		_, err := env.Pool.Exec(t.Context(), "SELECT publish_events("+array+")")
		assert.ErrorContains(t, err, says, array)
	}
	for key, says := range map[string]string{
		`''`: "idempotency_key must have 1 to 255 bytes", `repeat('x', 256)`: "idempotency_key must have 1 to 255 bytes",
		`E'a\tb'`: "idempotency_key must not have control characters", `U&'\009f'`: "idempotency_key must not have control characters",
	} {
		for _, function := range []string{"publish_event", "publish_event_message"} {
			_, err := env.Pool.Exec(t.Context(), "SELECT "+function+"('t', '{}', idempotency_key => "+key+")")
			assert.ErrorContains(t, err, "invalid event: "+says, function)
		}
	}
	_, err := env.Pool.Exec(t.Context(), "SELECT publish_events($1)", `[{"event_type": "t", "event_context": {"a": "\u0000"}}]`)
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	assert.Contains(t, pgErr.Hint, "publish_event")
	assert.Contains(t, pgErr.Detail, `\u0000`)
	old, err := pgx.Connect(t.Context(), env.PostgresURL)
	require.NoError(t, err)
	defer old.Close(t.Context())
	_, err = old.Exec(t.Context(), "SET standard_conforming_strings = off; SELECT publish_events('[{\"event_type\": \"t\", \"event_context\": 1}, {\"event_type\": 1}]'::json)")
	require.ErrorContains(t, err, "events[1].event_type must be a string", "escapes in the functions' own texts")
	assert.Empty(t, stored(t, env.Pool))
	assert.Empty(t, messages(t, env))
}

// Whatever a library hands over, the call is not ambiguous; json and text keep the bytes.
func TestTheFunctionsTakeEveryJSON(t *testing.T) {
	t.Parallel()
	env := listening(t)
	const bytes = ` {"b" :1, "a":"caf\u00e9 \/", "n": 1e5}`
	for _, function := range []string{"publish_event", "publish_event_message"} {
		for _, argument := range []string{"$1", "$1::text", "$1::json", "$1::varchar", "($1::text)::jsonb"} {
			_, err := env.Pool.Exec(t.Context(), "SELECT "+function+"('t', "+argument+")", bytes)
			require.NoError(t, err, argument)
		}
	}
	for _, statement := range []string{
		`SELECT publish_event('t', '{}')`, `SELECT publish_event('t', row_to_json(x)) FROM (SELECT 1 AS a) AS x`,
		`SELECT publish_event('t', json_build_object('a', 1))`, `SELECT publish_event('t', jsonb_build_object('a', 1), 'Staging')`,
		`SELECT publish_events(json_agg(x)) FROM (SELECT 't' AS event_type, 1 AS event_context) AS x`,
		`SELECT publish_events(jsonb_agg(x)) FROM (SELECT 't' AS event_type, 1 AS event_context) AS x`,
		`SELECT publish_events('[{"event_type": "t", "event_context": 1}]'::varchar)`,
		`SELECT publish_events(array_agg(to_json(x))) FROM (SELECT 't' AS event_type, 1 AS event_context) AS x`,
		`SELECT publish_events(array_agg(to_jsonb(x))) FROM (SELECT 't' AS event_type, 1 AS event_context) AS x`,
		`SELECT publish_events(ARRAY['{"event_type": "t", "event_context": 1}'])`,
		`SELECT publish_events(ARRAY['{"event_type": "t", "event_context": 1}']::varchar[])`,
		`SELECT publish_event('t', '{}', NULL, NULL, NULL, NULL, NULL)`,
	} {
		_, err := env.Pool.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	for _, e := range stored(t, env.Pool)[:4] {
		assert.Equal(t, bytes, string(e.Context)) //nolint:testifylint // byte for byte
	}
	_, err := env.Pool.Exec(t.Context(), "TRUNCATE outbox")
	require.NoError(t, err)
	for _, context := range []string{`"caf\u00e9 \/"`, `null`, `-0`, `1e131071`, `{"a":1,"a":2}`, ` [1 , 2] `} {
		for call, argument := range map[string]string{"publish_events($1)": `[{"event_type":"t","event_context":` + context + `}]`, "publish_events(ARRAY[$1::text])": `{"event_type":"t","event_context":` + context + `}`} {
			_, err := env.Pool.Exec(t.Context(), "SELECT "+call, argument)
			require.NoError(t, err, argument)
			assert.Equal(t, trimmed(context), string(stored(t, env.Pool)[0].Context), call)
			_, err = env.Pool.Exec(t.Context(), "TRUNCATE outbox")
			require.NoError(t, err)
		}
	}
}

// trimmed is a value without the blanks around it, which belong to the array.
func trimmed(value string) string {
	for len(value) > 0 && value[0] == ' ' {
		value = value[1:]
	}
	for len(value) > 0 && value[len(value)-1] == ' ' {
		value = value[:len(value)-1]
	}
	return value
}
