package event_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/event"
)

// An application may have a publish_event of its own in another schema. A call finds the
// function whose arguments fit best, and of equals the one whose schema is first in
// search_path (PostgreSQL docs, "Function Type Resolution"): none is ambiguous, and a name
// with its schema is always ours.
func TestAnApplicationMayHaveItsOwnPublishEvent(t *testing.T) {
	t.Parallel()
	env := listening(t)
	conn, err := pgx.Connect(t.Context(), env.PostgresURL)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	execute := func(statement string) {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	execute("CREATE SCHEMA app")
	execute("CREATE FUNCTION app.publish_event(text, json) RETURNS text LANGUAGE sql RETURN 'theirs'")
	execute("CREATE FUNCTION app.publish_event(text, jsonb, int DEFAULT 0) RETURNS text LANGUAGE sql RETURN 'theirs'")

	const ours, theirs, first = "uuid", "text", "of the first schema"
	for call, want := range map[string]string{
		`publish_event('t', '{}')`:                                                ours,
		`publish_event($1, $2)`:                                                   ours,
		`publish_event('t', '{}'::text)`:                                          ours,
		`publish_event('t', '{}'::varchar)`:                                       ours,
		`publish_event('t', '{}'::json)`:                                          first,
		`publish_event('t', row_to_json(ROW(1)))`:                                 first,
		`publish_event('t', '{}'::jsonb)`:                                         first,
		`publish_event('t', '{}'::jsonb, 7)`:                                      theirs,
		`publish_event('t', '{}', 'Staging')`:                                     ours,
		`publish_event('t', '{}'::json, 'Staging')`:                               ours,
		`publish_event('t', '{}'::jsonb, 'Staging')`:                              ours,
		`publish_event('t', '{}'::jsonb, environment => 'Staging')`:               ours,
		`publish_event(event_type => 't', event_context => '{}'::json)`:           ours,
		`public.publish_event('t', '{}')`:                                         ours,
		`public.publish_event($1, $2)`:                                            ours,
		`public.publish_event('t', '{}'::json)`:                                   ours,
		`public.publish_event('t', '{}'::jsonb)`:                                  ours,
		`publish_events('[{"event_type": "t", "event_context": 1}]')`:             ours,
		`publish_events(ARRAY['{"event_type": "t", "event_context": 1}'])`:        ours,
		`publish_event_message('t', '{}'::json, idempotency_key => 'of message')`: ours,
	} {
		for path, owner := range map[string]string{"app, public": theirs, "public, app": ours} {
			execute("SET search_path = " + path)
			if want != first {
				owner = want
			}
			var arguments []any
			if strings.Contains(call, "$1") {
				arguments = []any{"t", "{}"}
			}
			var found string
			require.NoError(t, conn.QueryRow(t.Context(), "SELECT pg_typeof("+call+")::text", arguments...).Scan(&found), "%s: %s", path, call)
			assert.Equal(t, owner, found, "%s: %s", path, call)
		}
	}

	execute("SET search_path = app, public")
	before := len(stored(t, env.Pool))
	keyed := full(1)
	keyed.IdempotencyKey = "k"
	require.NoError(t, event.Publish(t.Context(), conn, full(2), keyed))
	require.NoError(t, event.PublishMessages(t.Context(), conn, full(3)))
	assert.Len(t, stored(t, env.Pool), before+2)
}
