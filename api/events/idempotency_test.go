package events_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/events"
	"diehard/api/idempotency"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

func TestAKeyStoresItsEventsOnce(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for _, n := range []int{1, 3, 6000} {
		before := count(t, env.Pool, "outbox")
		key := uuid.NewString()
		first, err := events.New(env.Pool, "Local").Publish(t.Context(), request(n, key))
		require.NoError(t, err)
		assert.False(t, first.Repeated)
		for range 3 { // a service each: nothing is remembered in the process
			again, err := events.New(env.Pool, "Local").Publish(t.Context(), request(n, key))
			require.NoError(t, err)
			assert.Equal(t, events.Result{IDs: first.IDs, Repeated: true}, again)
		}
		_, err = events.New(env.Pool, "Local").Publish(t.Context(), request(n+1, key))
		require.ErrorIs(t, err, idempotency.ErrReused)
		assert.Equal(t, before+n, count(t, env.Pool, "outbox"))
	}
}

func TestIDsOfTheCallerAreInTheRepeatedReceipt(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	id := uuid.New()
	own := func() events.Request {
		r := request(3, "key")
		r.Source.(*source).next = func(i int) (events.NewEvent, error) {
			n, err := plain(i)
			if i == 1 {
				n.ID = id
			}
			return n, err
		}
		return r
	}
	service := events.New(env.Pool, "Local")
	first, err := service.Publish(t.Context(), own())
	require.NoError(t, err)
	assert.Equal(t, id, first.IDs[1])
	again, err := service.Publish(t.Context(), own())
	require.NoError(t, err)
	assert.Equal(t, first.IDs, again.IDs)
}

func TestCallersHaveTheirOwnKeys(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := events.New(env.Pool, "Local")
	for _, c := range [][2]string{{"", "k"}, {"a", "k"}, {"a", "b k"}, {"a b", "k"}, {"a", "l"}} {
		r := request(1, "")
		r.Key = idempotency.NewKey(c[0], c[1])
		result, err := service.Publish(t.Context(), r)
		require.NoError(t, err)
		assert.False(t, result.Repeated, "%q", c)
	}
	assert.Equal(t, 5, count(t, env.Pool, "outbox"))
}

// While the first request is in progress the others are refused; afterwards they get its answer.
func TestConcurrentRequestsWithOneKey(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := events.New(env.Pool, "Local")
	slow, halfway, release := pausing(t, "key")
	done := make(chan error, 1)
	var first events.Result
	go func() {
		var err error
		first, err = service.Publish(t.Context(), slow)
		done <- err
	}()
	<-halfway
	await.True(t, func() bool { // the claim follows the first chunk
		_, err := service.Publish(t.Context(), request(1, "key"))
		return assert.ObjectsAreEqual(idempotency.ErrRunning, err)
	}, "the key is claimed")
	release()
	require.NoError(t, <-done)
	again, err := service.Publish(t.Context(), request(6000, "key"))
	require.NoError(t, err)
	assert.Equal(t, events.Result{IDs: first.IDs, Repeated: true}, again)
	assert.Equal(t, 6000, count(t, env.Pool, "outbox"))
}

func TestARaceOfEqualRequestsStoresOne(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := events.New(env.Pool, "Local")
	for range 20 {
		key := uuid.NewString()
		var (
			all     sync.WaitGroup
			mu      sync.Mutex
			results []events.Result
		)
		before := count(t, env.Pool, "outbox")
		for range 8 {
			all.Go(func() {
				for {
					result, err := service.Publish(t.Context(), request(2, key))
					if err == idempotency.ErrRunning { //nolint:errorlint // exactly this
						continue
					}
					assert.NoError(t, err)
					mu.Lock()
					results = append(results, result)
					mu.Unlock()
					return
				}
			})
		}
		all.Wait()
		stored := 0
		for _, r := range results {
			assert.Equal(t, results[0].IDs, r.IDs)
			if !r.Repeated {
				stored++
			}
		}
		assert.Equal(t, 1, stored)
		assert.Equal(t, before+2, count(t, env.Pool, "outbox"))
	}
}

// age makes the keys older, as if they had been stored then.
func age(t *testing.T, pool *pgxpool.Pool, by string) {
	t.Helper()
	_, err := pool.Exec(t.Context(), `WITH old AS (DELETE FROM diehard_idempotency_keys RETURNING *)
		INSERT INTO diehard_idempotency_keys (key, request, first_id, created_at, turn)
		SELECT key, request, first_id, created_at - $1::interval,
			floor(extract(epoch FROM created_at - $1::interval) / 86400)::bigint % 3 FROM old`, by)
	require.NoError(t, err)
}

func TestAKeyIsFreeAfterItsLifetime(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := events.New(env.Pool, "Local")
	first, err := service.Publish(t.Context(), request(1, "key"))
	require.NoError(t, err)
	age(t, env.Pool, "23 hours 59 minutes")
	again, err := service.Publish(t.Context(), request(1, "key"))
	require.NoError(t, err)
	assert.True(t, again.Repeated)
	age(t, env.Pool, "2 minutes")
	fresh, err := service.Publish(t.Context(), request(2, "key"))
	require.NoError(t, err)
	assert.False(t, fresh.Repeated)
	assert.NotEqual(t, first.IDs[0], fresh.IDs[0], "ids are not given twice")
	again, err = service.Publish(t.Context(), request(2, "key"))
	require.NoError(t, err)
	assert.Equal(t, fresh.IDs, again.IDs, "the newer use counts")
}

func TestOldKeysAreForgottenWithoutDeadRows(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := events.New(env.Pool, "Local")
	clean := func() (used bool) {
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT diehard_idempotency_keys_clean()").Scan(&used))
		return used
	}
	for day := range 3 { // two days ago, yesterday, today
		if day > 0 {
			age(t, env.Pool, "1 day")
		}
		_, err := service.Publish(t.Context(), request(1, strings.Repeat("k", day+1)))
		require.NoError(t, err)
	}
	assert.True(t, clean())
	assert.Equal(t, 2, count(t, env.Pool, "diehard_idempotency_keys"), "two days ago is gone")
	assert.False(t, clean())
	assert.Equal(t, 2, count(t, env.Pool, "diehard_idempotency_keys"))
}

func TestCleaningDoesNotWait(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, err := events.New(env.Pool, "Local").Publish(t.Context(), request(1, "key"))
	require.NoError(t, err)
	age(t, env.Pool, "2 days")
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "SELECT FROM diehard_idempotency_keys")
	require.NoError(t, err)
	var used bool
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT diehard_idempotency_keys_clean()").Scan(&used))
	assert.False(t, used)
	require.NoError(t, tx.Rollback(t.Context()))

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		idempotency.Clean(ctx, env.Pool, time.Millisecond, slog.New(slog.DiscardHandler))
	}()
	await.True(t, func() bool { return count(t, env.Pool, "diehard_idempotency_keys") == 0 }, "expired keys are removed")
	cancel()
	<-done
}
