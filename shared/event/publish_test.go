package event_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// stored reads the outbox back in the order of insertion.
func stored(t *testing.T, pool *pgxpool.Pool) []event.Event {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT id, event_type, event_date_time, environment, event_context::text,
		metadata_version, coalesce(trace_context, '') FROM outbox ORDER BY ctid`)
	require.NoError(t, err)
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (event.Event, error) {
		var e event.Event
		var content string
		err := row.Scan(&e.ID, &e.Type, &e.DateTime, &e.Environment, &content, &e.MetadataVersion, &e.TraceContext)
		e.Context, e.DateTime = json.RawMessage(content), e.DateTime.UTC()
		return e, err
	})
	require.NoError(t, err)
	return list
}

func full(n int) event.Event {
	return event.Event{
		ID: uuid.New(), Type: fmt.Sprintf("type_%d", n), DateTime: time.Date(2026, 1, 2, 3, 4, 5, 6000+n*1000, time.UTC),
		Environment: "Staging", Context: json.RawMessage(fmt.Sprintf(` {"n" :%d}`, n)), MetadataVersion: int64(n + 1), TraceContext: traceparent,
	}
}

func TestPublishStoresEveryField(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	one := full(0)
	require.NoError(t, event.Publish(t.Context(), pool, one))
	assert.Equal(t, []event.Event{one}, stored(t, pool))
}

func TestPublishKeepsTheOrderOfMany(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	for _, n := range []int{10, 999, 1000, 2000} { // by INSERT and by COPY
		many := make([]event.Event, n)
		for i := range many {
			many[i] = full(i)
		}
		many[7].TraceContext, many[8].Environment = "", ""
		require.NoError(t, event.Publish(t.Context(), pool, many...))
		assert.Equal(t, many, stored(t, pool))

		var none int
		require.NoError(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM outbox WHERE trace_context IS NULL").Scan(&none))
		assert.Equal(t, 1, none)
		_, err := pool.Exec(t.Context(), "TRUNCATE outbox")
		require.NoError(t, err)
	}
}

func TestACopyFollowsTheTransactionAndFailsAlike(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	many := make([]event.Event, 1500)
	for i := range many {
		many[i] = full(i)
	}
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, event.Publish(t.Context(), tx, many...))
	require.NoError(t, tx.Rollback(t.Context()))
	assert.Empty(t, stored(t, pool))
	_, err = pool.Exec(t.Context(), "ALTER TABLE outbox ADD CONSTRAINT closed CHECK (event_type <> 'type_1400') NOT VALID")
	require.NoError(t, err)
	requireConstraint(t, event.Publish(t.Context(), pool, many...))
	assert.Empty(t, stored(t, pool), "all or none")
}

func TestPublishFillsInWhatIsMissing(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	bare := event.Event{Type: "t", Context: json.RawMessage(`{}`)}
	require.NoError(t, event.Publish(t.Context(), pool, bare))
	require.NoError(t, event.Publish(t.Context(), pool, bare, bare))
	list := stored(t, pool)
	require.Len(t, list, 3)
	ids := map[uuid.UUID]bool{}
	for _, e := range list {
		assert.Equal(t, uuid.Version(7), e.ID.Version())
		assert.WithinDuration(t, time.Now(), e.DateTime, time.Minute)
		assert.Equal(t, int64(1), e.MetadataVersion)
		ids[e.ID] = true
	}
	assert.Len(t, ids, 3)
}

func TestPublishNothingDoesNothing(t *testing.T) {
	t.Parallel()
	var batch pgx.Batch
	require.NoError(t, event.Publish(t.Context(), nil))
	require.NoError(t, event.Queue(&batch))
	assert.Zero(t, batch.Len())
}

// What Go takes for JSON, PostgreSQL takes too, and keeps byte for byte.
func TestContextIsKeptByteForByte(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	for _, content := range []string{
		`{"a":"\u0000"}`, `"\ud800"`, `"\udc00x"`, `{}`, `[1]`, `null`, `-0`, `1e999999`, " {\"a\" : 1}\r\n\t",
		`{"a":1,"a":2}`, `{"":1}`, "\"\u007f\u2028\U0001F600\"", `123456789012345678901234567890.5`,
		strings.Repeat("[", 5000) + strings.Repeat("]", 5000), string(text(event.MaxContextBytes)),
	} {
		e := event.Event{ID: uuid.New(), Type: "t", Context: json.RawMessage(content)}
		require.NoError(t, event.Publish(t.Context(), pool, e))
		require.NoError(t, event.Publish(t.Context(), pool, e, e))
		if len(content) < 1000 {
			require.NoError(t, event.Publish(t.Context(), pool, slices.Repeat([]event.Event{e}, 1000)...)) // COPY
			_, err := pool.Exec(t.Context(), "DELETE FROM outbox WHERE ctid IN (SELECT ctid FROM outbox WHERE id = $1 AND event_context::text = $2 LIMIT 1000)", e.ID, content)
			require.NoError(t, err)
		}
		var rows, same int
		require.NoError(t, pool.QueryRow(t.Context(),
			"SELECT count(*), count(*) FILTER (WHERE event_context::text = $2) FROM outbox WHERE id = $1", e.ID, content).Scan(&rows, &same))
		assert.Equal(t, []int{3, 3}, []int{rows, same}, "%.40s", content)
	}
}

func TestPublishFollowsTheTransaction(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	for commit, want := range map[bool]int{false: 0, true: 2} {
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		require.NoError(t, event.Publish(t.Context(), tx, full(1)))
		require.NoError(t, event.Publish(t.Context(), tx, full(2)))
		if commit {
			require.NoError(t, tx.Commit(t.Context()))
		} else {
			require.NoError(t, tx.Rollback(t.Context()))
		}
		assert.Len(t, stored(t, pool), want)
		if commit {
			_, err = pool.Exec(t.Context(), "TRUNCATE outbox")
			require.NoError(t, err)
		}
	}
}

func TestFailureIsErrPublishWithItsCause(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	invalid := event.Event{Type: "t", Context: json.RawMessage(`{`)}
	err := event.Publish(t.Context(), pool, full(1), invalid)
	require.ErrorIs(t, err, event.ErrPublish)
	require.ErrorIs(t, err, event.ErrInvalid)
	require.EqualError(t, err, "failed to publish event: invalid event: events[1].event_context must be JSON")
	assert.Empty(t, stored(t, pool), "nothing was sent")

	_, err = pool.Exec(t.Context(), "ALTER TABLE outbox ADD CONSTRAINT closed CHECK (false) NOT VALID")
	require.NoError(t, err)
	err = event.Publish(t.Context(), pool, full(1))
	requireConstraint(t, err)

	var batch pgx.Batch
	require.NoError(t, event.Queue(&batch, full(1)))
	requireConstraint(t, pool.SendBatch(t.Context(), &batch).Close())
}

func requireConstraint(t *testing.T, err error) {
	t.Helper()
	require.ErrorIs(t, err, event.ErrPublish)
	require.ErrorContains(t, err, "failed to publish event: ")
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	require.Equal(t, "closed", pgErr.ConstraintName)
}

func TestPublishStopsWithItsContext(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := event.Publish(ctx, pool, full(1))
	require.ErrorIs(t, err, event.ErrPublish)
	require.ErrorIs(t, err, context.Canceled)
}

func TestQueueIsAtomicWithTheCallersStatements(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	send := func(statement string) error {
		var batch pgx.Batch
		require.NoError(t, event.Queue(&batch, full(1)))
		batch.Queue(statement)
		return pool.SendBatch(t.Context(), &batch).Close()
	}
	require.Error(t, send("INSERT INTO users (email) VALUES ('')"))
	assert.Empty(t, stored(t, pool), "the event went with the failed statement")
	require.NoError(t, send("INSERT INTO users (email, first_name, last_name) VALUES ('a', 'b', 'c')"))
	assert.Len(t, stored(t, pool), 1)

	var batch pgx.Batch
	require.ErrorIs(t, event.Queue(&batch, event.Event{}), event.ErrPublish)
	assert.Zero(t, batch.Len())
}
