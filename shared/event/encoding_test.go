package event_test

import (
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/event"
)

var (
	encodedTwice = []string{`"{\"a\":1}"`, ` "[1, 2]"`, `"{}"`, `"\u007b\u007d"`, `"\n [\"\\u00e9\"] "`}
	encodedOnce  = []string{
		`"[urgent] call back"`, `"{name}"`, `"42"`, `"true"`, `"null"`, `"\"{}\""`, `""`, `"\u0000{}"`, `"{}\u0000"`, `"\ud800"`,
		`{"a":"{}"}`, `["{}"]`, `1`, `null`, ` {}`,
	}
)

func TestDoubleEncoded(t *testing.T) {
	t.Parallel()
	for _, content := range encodedTwice {
		assert.True(t, event.DoubleEncoded([]byte(content)), content)
	}
	for _, content := range append([]string{"", `"`, `"{}`}, encodedOnce...) {
		assert.False(t, event.DoubleEncoded([]byte(content)), content)
	}
}

// brokenEscape is what no text of PostgreSQL can hold: publish_events, which decodes the
// strings of its array, refuses it.
var brokenEscape = regexp.MustCompile(`\\u(0000|[dD][89a-fA-F])`)

func refusedInArrays(content string) bool { return brokenEscape.MatchString(content) }

// A double encoding is refused in every way to publish where the setting is on, and nowhere else.
func TestDoubleEncodingIsRefusedWhereWanted(t *testing.T) {
	t.Parallel()
	env := listening(t)
	db := stdlib.OpenDBFromPool(env.Pool)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	publish := func(content string) (failures []error) {
		e := event.Event{Type: "t", Context: json.RawMessage(content)}
		for _, publish := range []func(context.Context, pgx.Tx) error{
			execute(`INSERT INTO outbox (event_type, event_context) VALUES ('t', $1)`, content),
			execute(`INSERT INTO diehard_events (event_type, event_context) VALUES ('t', $1)`, content),
			execute(`SELECT publish_event('t', $1::text)`, content),
			execute(`SELECT publish_event('t', $1::text::json)`, content),
			execute(`SELECT publish_events($1::text)`, `[{"event_type":"t","event_context":`+content+`}]`),
			execute(`SELECT publish_event_message('t', $1::text)`, content),
			func(ctx context.Context, tx pgx.Tx) error { return event.Publish(ctx, tx, e) },
			func(ctx context.Context, tx pgx.Tx) error {
				return event.Publish(ctx, tx, slices.Repeat([]event.Event{e}, 1000)...)
			},
			func(ctx context.Context, tx pgx.Tx) error { return event.PublishMessages(ctx, tx, e) },
			func(ctx context.Context, tx pgx.Tx) error { return event.PublishMessages(ctx, tx, full(1), e) },
			func(ctx context.Context, _ pgx.Tx) error { return event.Publish(ctx, event.SQL(db), e) },
		} {
			tx, err := env.Pool.Begin(t.Context())
			require.NoError(t, err)
			failures = append(failures, publish(t.Context(), tx))
			require.NoError(t, tx.Rollback(t.Context()))
		}
		return failures
	}
	for _, content := range slices.Concat(encodedTwice, encodedOnce) {
		for i, err := range publish(content) {
			if i != 4 || !refusedInArrays(content) {
				assert.NoError(t, err, "way %d: %s", i, content)
			}
		}
	}
	var database string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT current_database()").Scan(&database))
	_, err := env.Pool.Exec(t.Context(), "ALTER DATABASE "+pgx.Identifier{database}.Sanitize()+" SET diehard.refuse_double_encoding = on")
	require.NoError(t, err)
	env.Pool.Reset()
	for _, content := range encodedTwice {
		for i, err := range publish(content) {
			require.ErrorContains(t, err, "event_context is JSON encoded twice", "way %d: %s", i, content)
			var pgErr *pgconn.PgError
			require.ErrorAs(t, err, &pgErr)
			assert.Equal(t, "23514", pgErr.Code)
		}
	}
	for _, content := range encodedOnce {
		for i, err := range publish(content) {
			if i != 4 || !refusedInArrays(content) {
				assert.NoError(t, err, "way %d: %s", i, content)
			}
		}
	}
}

func execute(statement string, argument any) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, statement, argument)
		return err
	}
}
