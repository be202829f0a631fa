package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

// The sixteen faults of comparable systems, each as a test of ours. Those of
// this file acknowledge what is not durable, or not what is.

const insertOne = `INSERT INTO outbox (event_type, event_context) VALUES ($1, '{}')`

// Two commit records next to each other in the WAL, the first written and the
// second not: one byte too much acknowledged, and it is never delivered again.
func TestF01_AcknowledgedPastTheEndOfACommit(t *testing.T) {
	t.Parallel()
	env, _ := ownPostgres(t, map[string]string{"autovacuum": "off", "bgwriter_delay": "10s"}) // nothing else writes
	s := start(t, env, abrupt)
	var commits []func(context.Context) error
	for range 6 {
		conn, err := pgx.Connect(t.Context(), env.PostgresURL)
		require.NoError(t, err)
		defer conn.Close(context.WithoutCancel(t.Context())) //nolint:revive // few, and until the test ends
		tx, err := conn.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), insertOne, "adjacent")
		require.NoError(t, err)
		commits = append(commits, tx.Commit)
	}
	require.NoError(t, commits[0](t.Context()))
	awaitRows(t, env, 1)
	confirmedPast(t, env)
	hold(t, env)
	for _, commit := range commits[1:] {
		require.NoError(t, commit(t.Context()))
	}
	await.True(t, func() bool { return s.seen.retries.Load() > 0 }, "ClickHouse is not asked")
	s.crash()
	assert.Equal(t, 5, pending(t, env), "all others are still to be delivered")
	release(t, env)
	start(t, env)
	delivered(t, env)
}

// The same with a row's LSN and the length of its payload: a large row that
// compresses well lies in a small place, and what follows within its length is lost.
func TestF02_AcknowledgedPastARowByItsLength(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, abrupt)
	execute(t, env, `INSERT INTO outbox (event_type, event_context) VALUES ('compressed', to_json(repeat('x', 100000)))`)
	awaitRows(t, env, 1)
	confirmedPast(t, env)
	hold(t, env)
	execute(t, env, `DO $$ BEGIN FOR i IN 1..200 LOOP
		INSERT INTO outbox (event_type, event_context) VALUES ('following', '{}'); COMMIT; END LOOP; END $$`)
	await.True(t, func() bool { return s.seen.retries.Load() > 0 }, "ClickHouse is not asked")
	s.crash()
	assert.Equal(t, 200, pending(t, env))
	release(t, env)
	start(t, env)
	delivered(t, env)
}

// Rows wait for ClickHouse while other tables are written and keepalives come
// whose positions lie beyond them.
func TestF03_AKeepaliveAcknowledgesPendingRows(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	execute(t, env, "CREATE TABLE other (v text)")
	s := start(t, env, abrupt)
	hold(t, env)
	before := walEnd(t, env)
	trickle(t, env, 10)
	await.True(t, func() bool { return s.seen.retries.Load() > 0 }, "ClickHouse is not asked")
	received := s.pipeline.Progress().Received()
	for range 3 { // keepalives keep coming, as far as the rows that wait let them
		execute(t, env, "INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
		await.True(t, func() bool { return s.pipeline.Progress().Received() > received }, "no keepalive")
		received = s.pipeline.Progress().Received()
	}
	assert.Greater(t, uint64(received), uint64(before)+1_000_000, "keepalives lie far behind the rows")
	s.crash()
	assert.Equal(t, 10, pending(t, env), "rows that a keepalive has acknowledged")
	release(t, env)
	start(t, env)
	delivered(t, env)
}

// Under steady load the confirmed position moves all the time, and not only in
// pauses; the lag that PostgreSQL shows is the true one.
func TestF04_NothingIsConfirmedUnderSteadyLoad(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	stop := produce(t, env, 2)
	for range 5 {
		n, confirmed := countRows(t, env), slotLSN(t, env, "confirmed_flush_lsn")
		await.True(t, func() bool { return countRows(t, env) > n && slotLSN(t, env, "confirmed_flush_lsn") > confirmed }, "the position stands still")
	}
	stop()
	delivered(t, env)
	confirmedPast(t, env)
}

// The first insert of a batch fails and later ones succeed: they must not carry
// the position past rows that were let go.
func TestF08_AFailedFlushForgetsItsRows(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, func(c *setup) { c.Limits.Rows = 50 })
	hold(t, env)
	publish(t, env, 120)
	trickle(t, env, 20)
	await.True(t, func() bool { return s.seen.retries.Load() > 1 }, "ClickHouse is not asked")
	release(t, env)
	trickle(t, env, 20)
	require.Equal(t, 160, delivered(t, env))
}

// A transaction that began before others and commits after a restart has rows
// below the position that was confirmed meanwhile.
func TestF10_AnEarlyBeginnerThatCommitsLateIsLost(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env)
	early, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = early.Exec(t.Context(), insertOne, "early")
	require.NoError(t, err)
	trickle(t, env, 20)
	awaitRows(t, env, 20)
	confirmedPast(t, env)
	s.stop()
	s = start(t, env)
	trickle(t, env, 20)
	awaitRows(t, env, 40)
	s.stop()
	_, err = early.Exec(t.Context(), insertOne, "late")
	require.NoError(t, err)
	require.NoError(t, early.Commit(t.Context()))
	start(t, env)
	require.Equal(t, 42, delivered(t, env))
}

// Neither do writes that fail move the position, whatever the class of the error:
// one that passes, one that is fatal, and one that is the row's own fault.
func TestF11_AFailingWriteIsDroppedAndThePositionMovesOn(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, abrupt)
	trickle(t, env, 3)
	awaitRows(t, env, 3)
	confirmedPast(t, env)
	hold(t, env)
	trickle(t, env, 3)
	await.True(t, func() bool { return s.seen.retries.Load() > 2 }, "ClickHouse is not asked")
	s.crash()
	require.Equal(t, 3, pending(t, env), "after an error that passes")

	command(t, env, "RENAME TABLE LOG TO away")
	err := launch(t, env).refusal()
	require.Error(t, err)
	require.Equal(t, 3, pending(t, env), "after a fatal error")
	command(t, env, "RENAME TABLE away TO LOG")
	release(t, env)
	start(t, env)
	delivered(t, env)
}

// An idle slot advances by keepalives, so that foreign WAL is not kept for ever;
// without a streamer, it stays where it is.
func TestF13_ThePositionOfAnIdleSlot(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	execute(t, env, "CREATE TABLE other (v text)")
	s := start(t, env)
	restart := slotLSN(t, env, "restart_lsn")
	for range 2 {
		execute(t, env, "INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
		confirmedPast(t, env)
	}
	await.True(t, func() bool {
		execute(t, env, "CHECKPOINT") // it notes in the WAL where decoding may begin anew
		return slotLSN(t, env, "restart_lsn") > restart
	}, "WAL is kept for ever")
	s.stop()
	confirmed := slotLSN(t, env, "confirmed_flush_lsn")
	trickle(t, env, 3)
	execute(t, env, "INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
	assert.Equal(t, confirmed, slotLSN(t, env, "confirmed_flush_lsn"), "no streamer runs and the position moves")
	assert.Equal(t, 3, pending(t, env))
	start(t, env)
	delivered(t, env)
}

// Before anything is written there is nothing to confirm, and a zero in a status
// update would be taken for the position received.
func TestF15_AZeroPositionAcknowledgesWhatWasReceived(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	often := func(c *setup) { c.SenderTimeout = time.Second }
	s := start(t, env, abrupt, often)
	hold(t, env)
	trickle(t, env, 10)
	await.True(t, func() bool { return s.seen.retries.Load() > 3 }, "ClickHouse is not asked") // several statuses long
	s.crash()
	require.Equal(t, 10, pending(t, env))
	s = start(t, env, abrupt, often)
	await.True(t, func() bool { return s.seen.retries.Load() > 3 }, "ClickHouse is not asked")
	flushed := lsn(t, env, "SELECT coalesce(flush_lsn, '0/0')::text FROM pg_stat_replication WHERE pid = $1", walsender(t, env))
	assert.Equal(t, slotLSN(t, env, "confirmed_flush_lsn"), flushed, "a session begins with what the slot has confirmed")
	s.crash()
	require.Equal(t, 10, pending(t, env))
	release(t, env)
	start(t, env)
	delivered(t, env)
}
