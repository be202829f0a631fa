package e2e

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/postgres"
)

// publisherWays are the ways of a producer to publish an event of the type that stands for $1.
var publisherWays = map[string]string{
	"INSERT":         "INSERT INTO outbox (event_type, event_context) VALUES ($1, '{}')",
	"the view":       "INSERT INTO diehard_events (event_type, event_context) VALUES ($1, '{}') RETURNING *",
	"function":       "SELECT publish_event($1::text, '{}')",
	"many":           "SELECT * FROM publish_events(json_build_array(json_build_object('event_type', $1::text, 'event_context', 1)))",
	"message":        "SELECT publish_event_message($1::text, '{}')",
	"another's name": "WITH boss AS (SELECT set_config('role', 'diehard_producer', true)) INSERT INTO outbox (event_type, event_context) SELECT $1, '{}' FROM boss",
	"inside":         "SELECT publish_event($1::text, '{\"published_by\": \"boss\"}')",
}

// forgeries say who published, and are refused.
var forgeries = []string{
	"INSERT INTO outbox (event_type, event_context, published_by) VALUES ('forged', '{}', 'boss')",
	"INSERT INTO outbox (event_type, event_context, published_by) VALUES ('forged', '{}', DEFAULT)",
	"INSERT INTO outbox VALUES (gen_random_uuid(), 'forged', now(), '', '{}', 1, NULL, 'boss')",
	"INSERT INTO diehard_events (event_type, event_context, published_by) VALUES ('forged', '{}', 'boss')",
	"COPY outbox (event_type, event_context, published_by) FROM STDIN",
	"COPY outbox FROM STDIN",
	`SELECT * FROM publish_events('[{"event_type": "forged", "event_context": 1, "published_by": "boss"}]')`,
	"SELECT publish_event('forged', '{}', published_by => 'boss')",
	"SELECT publish_event_message('forged', '{}', published_by => 'boss')",
	`SELECT pg_logical_emit_message(true, 'diehard.event', '{"v":1,"id":"0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b","event_type":"forged","event_date_time":"2026-01-01T00:00:00Z","published_by":"boss"}' || E'\n{}')`,
	"SET SESSION AUTHORIZATION postgres", "SET ROLE postgres", "SET ROLE diehard_api",
	"UPDATE outbox SET published_by = 'boss'", "ALTER TABLE outbox ALTER published_by SET DEFAULT 'boss'",
	"INSERT INTO diehard_outbox_default (event_type, event_context, published_by) VALUES ('forged', '{}', 'boss')",
}

// Who published an event is what PostgreSQL or the api knows of its session, in event_log as
// well, whichever way it came and whatever its producer says.
func TestThePublisherCannotBeForged(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	require.NoError(t, migrations.Outbox("", "").CloseMessages(t.Context(), postgres.Config{URL: env.PostgresURL}))
	start(t, env, withMessages)
	producer, err := pgx.Connect(t.Context(), login(t, env, "diehard_producer", ""))
	require.NoError(t, err)
	t.Cleanup(func() { _ = producer.Close(t.Context()) })
	want := map[string]string{}
	for way, statement := range publisherWays {
		_, err := producer.Exec(t.Context(), statement, pgx.QueryExecModeExec, way)
		require.NoError(t, err, way)
		want[way] = env.Slot + "_diehard_producer"
	}
	_, err = producer.CopyFrom(t.Context(), pgx.Identifier{"outbox"}, []string{"event_type", "event_context"}, pgx.CopyFromRows([][]any{{"COPY", []byte("{}")}}))
	require.NoError(t, err)
	want["COPY"] = env.Slot + "_diehard_producer"
	for _, statement := range forgeries {
		_, err := producer.Exec(t.Context(), statement)
		var refused *pgconn.PgError
		require.ErrorAs(t, err, &refused, statement)
		// insufficient_privilege, no such column or function, or not a field of an event
		assert.Contains(t, []string{"42501", "42703", "42883", "23514"}, refused.Code, statement)
	}

	const secret = "dh_secret"
	entry := fmt.Sprintf("shop:%x", sha256.Sum256([]byte(secret)))
	database := "DATABASE_URL=" + login(t, env, "diehard_api", "")
	for name, c := range map[string]struct{ keys, secret, by string }{
		"with a key": {"API_KEYS=" + entry, secret, "shop"}, "without keys": {"API_KEYS=", "", env.Slot + "_diehard_api"},
	} {
		api := run(t, env, "api", database, c.keys).address()
		for _, kind := range []string{"application/json", "application/x-ndjson"} {
			send := func(body string) int {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, api+"/events", strings.NewReader(body))
				require.NoError(t, err)
				request.Header = http.Header{
					"Content-Type": {kind}, "X-Api-Key": {c.secret}, "Published-By": {"boss"}, "X-Forwarded-User": {"boss"},
					"Forwarded": {"for=boss"}, "X-Forwarded-For": {"boss"}, "From": {"boss"}, "Cookie": {"published_by=boss"},
				}
				request.Close = true
				response, err := http.DefaultClient.Do(request)
				require.NoError(t, err)
				require.NoError(t, response.Body.Close())
				return response.StatusCode
			}
			assert.Equal(t, http.StatusAccepted, send(`{"event_type":"`+name+" "+kind+`","event_context":{"published_by":"boss"}}`))
			assert.Equal(t, http.StatusUnprocessableEntity, send(`{"event_type":"forged","event_context":1,"published_by":"boss"}`))
			want[name+" "+kind] = c.by
		}
	}

	awaitRows(t, env, len(want))
	rows, err := env.ClickHouse.Query(t.Context(), "SELECT event_type, published_by FROM "+env.ClickHouseConfig.EventLogTable)
	require.NoError(t, err)
	defer rows.Close()
	have := map[string]string{}
	for rows.Next() {
		var eventType, by string
		require.NoError(t, rows.Scan(&eventType, &by))
		have[eventType] = by
	}
	require.NoError(t, rows.Err())
	assert.Equal(t, want, have)
}

// What producers may say of an event: when it happened, its id, its environment. The
// README says so; when it was published is not for them to say.
func TestProducersSetTimeIDAndEnvironment(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	producer, err := pgx.Connect(t.Context(), login(t, env, "diehard_producer", ""))
	require.NoError(t, err)
	t.Cleanup(func() { _ = producer.Close(t.Context()) })
	_, err = producer.Exec(t.Context(), `INSERT INTO outbox (id, event_type, event_date_time, environment, event_context)
		VALUES ('0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b', 'old', '2001-02-03', 'Elsewhere', '{}')`)
	require.NoError(t, err)
	_, err = producer.Exec(t.Context(), `INSERT INTO outbox (event_type, event_context, published_at) VALUES ('old', '{}', '2001-02-03')`)
	require.Error(t, err)
	awaitRows(t, env, 1)
	assert.Equal(t, 1, count(t, env, "count()", `WHERE event_id = '0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b' AND toYear(event_date_time) = 2001
		AND environment = 'Elsewhere' AND commit_time > now() - INTERVAL 1 HOUR`))
}
