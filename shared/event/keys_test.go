package event_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

// With a key the event is stored once, whichever client asks again, until its content differs.
func TestIdempotencyKeysStoreAnEventOnce(t *testing.T) {
	t.Parallel()
	env := listening(t)
	once := full(1)
	once.IdempotencyKey = "order 42 paid"
	for range 3 {
		require.NoError(t, event.Publish(t.Context(), env.Pool, once))
	}
	require.NoError(t, event.Publish(t.Context(), env.Pool, once, full(2), once))
	assert.Equal(t, []string{"type_1", "type_2"}, types(stored(t, env.Pool)))
	var first, again string
	const call = `SELECT publish_event('t', '{"a": 1}', idempotency_key => 'k')`
	require.NoError(t, env.Pool.QueryRow(t.Context(), call).Scan(&first))
	require.NoError(t, env.Pool.QueryRow(t.Context(), call).Scan(&again))
	assert.Equal(t, first, again, "the id of the first")
	require.NoError(t, env.Pool.QueryRow(t.Context(),
		`SELECT * FROM publish_events('[{"event_type": "t", "event_context": {"a": 1}, "idempotency_key": "k"}]')`).Scan(&again))
	assert.Equal(t, first, again)
	_, err := env.Pool.Exec(t.Context(), `SELECT publish_event('t', '{"a": 2}', idempotency_key => 'k')`)
	require.ErrorContains(t, err, "idempotency_key was used for another event")

	// A rollback gives the key back.
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	taken := full(3)
	taken.IdempotencyKey = "taken back"
	require.NoError(t, event.Publish(t.Context(), tx, taken))
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, event.Publish(t.Context(), env.Pool, taken))
	assert.Contains(t, types(stored(t, env.Pool)), "type_3")

	// Old keys are deleted.
	_, err = env.Pool.Exec(t.Context(), "UPDATE diehard_published_keys SET created_at = now() - interval '2 days' WHERE content = content")
	require.NoError(t, err)
	var deleted int
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT diehard_delete_keys()").Scan(&deleted))
	assert.Equal(t, 3, deleted)
}

func types(events []event.Event) (list []string) {
	for _, e := range events {
		list = append(list, e.Type)
	}
	return list
}

// byKey publish an event of a type under a key that is the type's name. The environment says
// which session it was.
var byKey = map[string]func(ctx context.Context, tx pgx.Tx, kind, session string) error{
	"Go":           publishKeyed(event.Publish),
	"Go, messages": publishKeyed(event.PublishMessages),
	"Go, many messages": publishKeyed(func(ctx context.Context, db event.DB, events ...event.Event) error {
		return event.PublishMessages(ctx, db, append(events, events...)...)
	}),
	"publish_event": func(ctx context.Context, tx pgx.Tx, kind, session string) error {
		_, err := tx.Exec(ctx, "SELECT publish_event($1, '{}', $2, idempotency_key => $1)", kind, session)
		return err
	},
	"publish_events": func(ctx context.Context, tx pgx.Tx, kind, session string) error {
		object := fmt.Sprintf(`{"event_type": %q, "event_context": {}, "environment": %q, "idempotency_key": %[1]q}`, kind, session)
		_, err := tx.Exec(ctx, "SELECT publish_events($1)", "["+object+"]")
		return err
	},
	"message": func(ctx context.Context, tx pgx.Tx, kind, session string) error {
		_, err := tx.Exec(ctx, "SELECT publish_event_message($1, '{}', $2, idempotency_key => $1)", kind, session)
		return err
	},
}

func publishKeyed(publish func(context.Context, event.DB, ...event.Event) error) func(context.Context, pgx.Tx, string, string) error {
	return func(ctx context.Context, tx pgx.Tx, kind, session string) error {
		return publish(ctx, tx, event.Event{Type: kind, Context: []byte("{}"), Environment: session, IdempotencyKey: kind})
	}
}

// Two sessions publish under one key: the second waits for the first, whichever way each
// uses. After a commit it stores nothing, after a rollback the event.
func TestASecondSessionWaitsForTheKey(t *testing.T) {
	t.Parallel()
	env := listening(t)
	want := map[string]string{}
	for one, first := range byKey {
		for other, second := range byKey {
			for _, commit := range []bool{true, false} {
				kind := fmt.Sprintf("%s, %s, %t", one, other, commit)
				secondWaits(t, env, commit,
					func(tx pgx.Tx) error { return first(t.Context(), tx, kind, "first") },
					func(tx pgx.Tx) error { return second(t.Context(), tx, kind, "second") })
				want[kind] = "second"
				if commit {
					want[kind] = "first"
				}
			}
		}
	}
	got := map[string]string{}
	for _, e := range stored(t, env.Pool) {
		got[e.Type] += e.Environment
	}
	for _, m := range messages(t, env) {
		var header struct {
			Type        string `json:"event_type"`
			Environment string
		}
		line, _, _ := strings.Cut(m, "\n")
		require.NoError(t, json.Unmarshal([]byte(line), &header))
		got[header.Type] += header.Environment
	}
	assert.Equal(t, want, got)
}

// secondWaits runs two transactions: the second waits for the end of the first.
func secondWaits(t *testing.T, env *testenv.Env, commit bool, first, second func(tx pgx.Tx) error) {
	t.Helper()
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }() // or the pool never closes
	require.NoError(t, first(tx))
	pid, done := make(chan uint32, 1), make(chan error, 1)
	go func() {
		done <- pgx.BeginFunc(t.Context(), env.Pool, func(tx pgx.Tx) error {
			pid <- tx.Conn().PgConn().PID()
			return second(tx)
		})
	}()
	process := <-pid
	await.True(t, func() bool {
		var waits bool
		err := env.Pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", process).Scan(&waits)
		require.NoError(t, err)
		return waits
	}, "the second session does not wait")
	if commit {
		require.NoError(t, tx.Commit(t.Context()))
	} else {
		require.NoError(t, tx.Rollback(t.Context()))
	}
	require.NoError(t, <-done)
}

// A message with a key is emitted once, and the key is the same for rows.
func TestAMessageWithAKeyIsEmittedOnce(t *testing.T) {
	t.Parallel()
	env := listening(t)
	call := func(function, context string) (id string, err error) {
		err = env.Pool.QueryRow(t.Context(), "SELECT "+function+"('t', $1, idempotency_key => 'k')", context).Scan(&id)
		return id, err
	}
	first, err := call("publish_event_message", `{"a": 1}`)
	require.NoError(t, err)
	for _, function := range []string{"publish_event_message", "publish_event"} {
		again, err := call(function, `{"a": 1}`)
		require.NoError(t, err)
		assert.Equal(t, first, again, "the id of the first")
		_, err = call(function, `{"a": 2}`)
		require.ErrorContains(t, err, "idempotency_key was used for another event")
	}
	assert.Len(t, messages(t, env), 1)
	assert.Empty(t, stored(t, env.Pool))
}

// One array may have a key twice: the event is stored once, and both have its id.
func TestAKeyTwiceInOneArray(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	const (
		k     = `{"event_type": "type_k", "event_context": 1, "idempotency_key": "k"}`
		l     = `{"event_type": "type_l", "event_context": 1, "idempotency_key": "l"}`
		free  = `{"event_type": "free", "event_context": 1}`
		other = `{"event_type": "type_k", "event_context": 2, "idempotency_key": "k"}`
	)
	publish := func(objects ...string) ([]string, error) {
		rows, err := env.Pool.Query(t.Context(), "SELECT * FROM publish_events($1)", "["+strings.Join(objects, ",")+"]")
		require.NoError(t, err)
		return pgx.CollectRows(rows, pgx.RowTo[string])
	}
	_, err := publish(free, k, other)
	require.ErrorContains(t, err, "idempotency_key was used for another event")
	assert.Empty(t, stored(t, env.Pool), "all or none")

	ids, err := publish(k, free, l, k, free, k)
	require.NoError(t, err)
	require.Len(t, ids, 6)
	assert.Equal(t, []string{ids[0], ids[0]}, []string{ids[3], ids[5]})
	events := stored(t, env.Pool)
	assert.Equal(t, []string{"type_k", "free", "type_l", "free"}, types(events))
	for i, at := range []int{0, 1, 2, 4} {
		assert.Equal(t, ids[at], events[i].ID.String())
	}
	again, err := publish(l, k)
	require.NoError(t, err)
	assert.Equal(t, []string{ids[2], ids[0]}, again)
	assert.Len(t, stored(t, env.Pool), 4)
}
