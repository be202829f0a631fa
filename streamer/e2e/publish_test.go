package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

func withMessages(c *setup) { c.Origin.Messages = true }

// way publishes events in the order given, as one transaction.
type way func(ctx context.Context, env *testenv.Env, db *sql.DB, events []event.Event) error

var ways = map[string]way{
	"event.Publish": func(ctx context.Context, env *testenv.Env, _ *sql.DB, events []event.Event) error {
		return pgx.BeginFunc(ctx, env.Pool, func(tx pgx.Tx) error { return event.Publish(ctx, tx, events...) })
	},
	"event.Publish, one by one": eachIn(func(ctx context.Context, tx pgx.Tx, e event.Event) error { return event.Publish(ctx, tx, e) }),
	"event.Queue": func(ctx context.Context, env *testenv.Env, _ *sql.DB, events []event.Event) error {
		var batch pgx.Batch
		if err := event.Queue(&batch, events...); err != nil {
			return err
		}
		return env.Pool.SendBatch(ctx, &batch).Close()
	},
	"event.PublishMessages": func(ctx context.Context, env *testenv.Env, _ *sql.DB, events []event.Event) error {
		return event.PublishMessages(ctx, env.Pool, events...)
	},
	"event.QueueMessages": func(ctx context.Context, env *testenv.Env, _ *sql.DB, events []event.Event) error {
		var batch pgx.Batch
		if err := event.QueueMessages(&batch, events...); err != nil {
			return err
		}
		return env.Pool.SendBatch(ctx, &batch).Close()
	},
	"database/sql":           throughSQL(event.Publish),
	"database/sql, messages": throughSQL(event.PublishMessages),
	"publish_event": eachIn(func(ctx context.Context, tx pgx.Tx, e event.Event) error {
		_, err := tx.Exec(ctx, "SELECT publish_event($1, $2, $3, $4, nullif($5, ''), $6, $7)", rowOf(e)...)
		return err
	}),
	"publish_events": func(ctx context.Context, env *testenv.Env, _ *sql.DB, events []event.Event) error {
		var list []string
		for _, e := range events {
			list = append(list, fmt.Sprintf(`{"event_id": %q, "event_type": %q, "environment": %q, "metadata_version": %d, "event_date_time": %q, "trace_context": %q, "event_context":%s}`,
				e.ID, e.Type, e.Environment, e.MetadataVersion, e.DateTime.Format(time.RFC3339Nano), e.TraceContext, e.Context))
		}
		_, err := env.Pool.Exec(ctx, "SELECT publish_events($1::text::json)", "["+strings.Join(list, ",")+"]")
		return err
	},
	"publish_event_message": eachIn(func(ctx context.Context, tx pgx.Tx, e event.Event) error {
		_, err := tx.Exec(ctx, "SELECT publish_event_message($1, $2, $3, $4, nullif($5, ''), $6, $7)", rowOf(e)...)
		return err
	}),
	"pg_logical_emit_message": eachIn(func(ctx context.Context, tx pgx.Tx, e event.Event) error {
		_, err := tx.Exec(ctx, `SELECT pg_logical_emit_message(true, 'diehard.event', jsonb_build_object('v', 1, 'id', $6::uuid, 'event_type', $1::text,
			'environment', $3::text, 'metadata_version', $4::bigint, 'event_date_time', $5::timestamptz, 'trace_context', $7::text,
			'published_by', 'by hand')::text || E'\n' || $2::text)`,
			e.Type, string(e.Context), e.Environment, e.MetadataVersion, e.DateTime, e.ID, e.TraceContext)
		return err
	}),
	"COPY": func(ctx context.Context, env *testenv.Env, _ *sql.DB, events []event.Event) error {
		_, err := env.Pool.CopyFrom(ctx, pgx.Identifier{event.Table},
			[]string{"event_type", "event_context", "environment", "metadata_version", "trace_context", "event_date_time", "id"},
			pgx.CopyFromSlice(len(events), func(i int) ([]any, error) { return rowOf(events[i]), nil }))
		return err
	},
}

func rowOf(e event.Event) []any {
	trace := pgtype.Text{String: e.TraceContext, Valid: e.TraceContext != ""}
	return []any{e.Type, []byte(e.Context), e.Environment, e.MetadataVersion, trace, e.DateTime, e.ID}
}

// eachIn publishes events one by one in a transaction.
func eachIn(publish func(context.Context, pgx.Tx, event.Event) error) way {
	return func(ctx context.Context, env *testenv.Env, _ *sql.DB, events []event.Event) error {
		return pgx.BeginFunc(ctx, env.Pool, func(tx pgx.Tx) error {
			for _, e := range events {
				if err := publish(ctx, tx, e); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func throughSQL(publish func(context.Context, event.DB, ...event.Event) error) way {
	return func(ctx context.Context, _ *testenv.Env, db *sql.DB, events []event.Event) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if err := publish(ctx, event.SQL(tx), events...); err != nil {
			return err
		}
		return tx.Commit()
	}
}

func TestEveryWayOfPublishingArrives(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env, withMessages)
	db := sql.OpenDB(stdlib.GetPoolConnector(env.Pool))
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	total := 0
	for name, publish := range ways {
		var events []event.Event
		for i, context := range []string{` {"b" :1, "a":"\u00e9 \ud83c\udf89 é \n"}`, `{"n":2}`, `[3]`} {
			e, err := event.New(json.RawMessage(context), event.WithType(fmt.Sprintf("%s %d", name, i)), event.WithEnvironment("Prüfung"),
				event.WithTime(time.Date(2031, 2, 3, 4, 5, 6, 789_012_000, time.UTC)), event.WithMetadataVersion(int64(7+i)),
				event.WithTraceContext(fmt.Sprintf("00-4bf92f3577b34da6a3ce929d0e0e473%d-00f067aa0ba902b7-01", i)))
			require.NoError(t, err)
			events = append(events, e)
		}
		require.NoError(t, publish(t.Context(), env, db, events), name)
		total += len(events)
		awaitRows(t, env, total)
		var lsn uint64
		for i, e := range events {
			row := readRow(t, env, e.Type)
			switch name {
			case "publish_events": // takes values out of an array
				assert.Equal(t, strings.TrimSpace(string(e.Context)), row.Context, name)
			default:
				assert.Equal(t, string(e.Context), row.Context, name)
			}
			assert.Equal(t, e.ID, row.ID, name)
			assert.Equal(t, "Prüfung", row.Environment, name)
			assert.Equal(t, e.DateTime, row.DateTime.UTC(), name)
			assert.EqualValues(t, 7+i, row.MetadataVersion, name)
			assert.Equal(t, fmt.Sprintf("4bf92f3577b34da6a3ce929d0e0e473%d", i), row.TraceID, name)
			if name == "pg_logical_emit_message" { // where it is what the message says
				assert.Equal(t, "by hand", row.PublishedBy)
			} else {
				assert.Equal(t, "postgres", row.PublishedBy, name)
			}
			assert.EqualValues(t, i+1, row.CommitSeq, "%s: order", name)
			lsn = max(lsn, row.CommitLSN)
			assert.Equal(t, lsn, row.CommitLSN, "%s: one transaction", name)
		}
	}
}

func TestPublishEventsFillsInDefaultsAndReturnsIds(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	rows, err := env.Pool.Query(t.Context(), `SELECT publish_events::text FROM publish_events('[
		{"event_type": "first", "event_context": {"b":1,  "a":2}}, {"event_type": "second", "event_context": [], "event_key": "order 42"}]')`)
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, 2, delivered(t, env))
	for i, name := range []string{"first", "second"} {
		row := readRow(t, env, name)
		assert.Equal(t, ids[i], row.ID.String())
		assert.EqualValues(t, 1, row.MetadataVersion)
		assert.Empty(t, row.Environment)
		assert.WithinDuration(t, row.CommitTime, row.DateTime, await.Limit)
	}
	assert.Equal(t, `{"b":1,  "a":2}`, readRow(t, env, "first").Context)
	_, err = env.Pool.Exec(t.Context(), `SELECT publish_events('[{"event_type": "good", "event_context": 1}, {"event_type": "", "event_context": 1}]')`)
	require.ErrorContains(t, err, "events[1].event_type must have 1 to 255 bytes", "all or none")
	execute(t, env, `SELECT publish_events('[]')`)
	require.Equal(t, 2, delivered(t, env))
}
