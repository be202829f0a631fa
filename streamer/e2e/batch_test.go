package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

func TestRowsBoundABatch(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, func(c *setup) { c.Limits.Rows = 70 })
	publish(t, env, 1000)
	delivered(t, env)
	flushes := s.seen.durable()
	assert.GreaterOrEqual(t, len(flushes), 1000/70)
	for _, f := range flushes {
		assert.LessOrEqual(t, f.Rows, 70)
	}
	assert.Equal(t, 1, count(t, env, "uniqExact(commit_lsn)", ""), "one transaction, one position")
	assert.Equal(t, 1000, count(t, env, "max(commit_seq)", ""))
	assert.Equal(t, 1000, count(t, env, "countIf(commit_seq = JSONExtractUInt(event_context, 'n'))", ""), "rows in their order")
}

func TestBytesBoundABatch(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	const limit, row = 64 << 10, 10 << 10
	s := start(t, env, func(c *setup) { c.Limits.Bytes = limit })
	execute(t, env, `INSERT INTO outbox (event_type, event_context)
		SELECT 'wide', to_json(repeat('x', $1)) FROM generate_series(1, 100)`, row)
	delivered(t, env)
	flushes := s.seen.durable()
	assert.GreaterOrEqual(t, len(flushes), 100*row/(limit+2*row))
	for _, f := range flushes {
		assert.LessOrEqual(t, f.Bytes, limit+2*row, "the bound and the row that reached it")
	}
}

// Rows wait for others at most the flush interval: those of a stream that never
// pauses and never fills a batch are written while it goes on.
func TestAgeBoundsABatch(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, func(c *setup) { c.FlushInterval = 100 * time.Millisecond })
	stop := produce(t, env, 1)
	await.True(t, func() bool { return countRows(t, env) > 100 }, "nothing is written while events keep coming")
	stop()
	n := delivered(t, env)
	assert.Less(t, len(s.seen.durable()), n/2, "rows do wait for others")
}

func TestOrderIsCommitOrder(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	const insert = `INSERT INTO outbox (event_type, event_context) VALUES ($1, '{}')`
	early, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = early.Exec(t.Context(), insert, "began first")
	require.NoError(t, err)
	execute(t, env, insert, "committed first")
	require.NoError(t, early.Commit(t.Context()))
	stop := produce(t, env, 8)
	await.True(t, func() bool { return countRows(t, env) > 400 }, "no rows")
	stop()
	delivered(t, env)

	assert.Less(t, readRow(t, env, "committed first").CommitLSN, readRow(t, env, "began first").CommitLSN)
	producersInOrder(t, env)
}

// produce has n producers commit numbered events, now one in a transaction, now
// several, until stop is called, which waits for them. Half of the transactions
// with several roll a part back.
func produce(t testing.TB, env *testenv.Env, n int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var producers sync.WaitGroup
	for p := range n {
		producers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := produceOne(context.WithoutCancel(ctx), env, p, i); err != nil && ctx.Err() == nil { // what has begun ends before the rows are counted
					t.Errorf("producer %d: %v", p, err)
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); producers.Wait() })
	t.Cleanup(stop)
	return stop
}

func produceOne(ctx context.Context, env *testenv.Env, producer, i int) error {
	const insert = `INSERT INTO outbox (event_type, event_context) SELECT $1, json_build_object('p', $2::int, 'i', $3::int, 'k', k) FROM generate_series(1, $4::int) AS k`
	name := fmt.Sprintf("producer_%d", producer)
	if i%5 != 0 {
		_, err := env.Pool.Exec(ctx, insert, name, producer, i, 1)
		return err
	}
	tx, err := env.Pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, insert, name, producer, i, 3); err != nil {
		return err
	}
	if i%10 == 0 {
		for _, statement := range []string{"SAVEPOINT s", "INSERT INTO outbox (event_type, event_context) VALUES ('rolled_back', '{}')", "ROLLBACK TO s"} {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
	}
	return tx.Commit(ctx)
}

// producersInOrder demands that the events of each producer lie in the event log
// in the order in which it committed them.
func producersInOrder(t testing.TB, env *testenv.Env) {
	t.Helper()
	unordered := `uniqExactIf(event_id, here < before)`
	from := `(SELECT event_id, (JSONExtractUInt(event_context, 'i'), JSONExtractUInt(event_context, 'k')) AS here,
		lagInFrame(here, 1, (0, 0)) OVER (PARTITION BY event_type ORDER BY commit_lsn, commit_seq) AS before
		FROM ` + env.ClickHouseConfig.EventLogTable + ` WHERE startsWith(event_type, 'producer_'))`
	var n uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT "+unordered+" FROM "+from).Scan(&n))
	require.Zero(t, n, "events out of their producer's order")
}
