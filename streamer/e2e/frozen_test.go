package e2e

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

// ClickHouse freezes under a load of small transactions, with a full batch: the receiver
// does not read for ten sender timeouts, and what the walsender has sent fills the socket in small
// segments. The session goes on: the server hears of the streamer all the time.
func TestAFrozenClickHouseDoesNotCostTheSession(t *testing.T) {
	t.Parallel()
	const senderTimeout = 4 * time.Second // twice as long must no server be silent, on a busy disk either
	env, engine := ownClickHouse(t)
	s := start(t, env, func(c *setup) {
		c.SenderTimeout, c.InsertTimeout = senderTimeout, 5*time.Minute
		c.Limits.Rows = 2000
	})
	var commits atomic.Int64
	stop := make(chan struct{})
	done := make(chan error, 4)
	for i := range cap(done) {
		conn, err := pgx.Connect(t.Context(), env.PostgresURL)
		require.NoError(t, err)
		go func() {
			defer func() { _ = conn.Close(t.Context()) }()
			for n := 0; ; n++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				if _, err := conn.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES ($1, '{}')", fmt.Sprint(i)); err != nil {
					done <- err
					return
				}
				commits.Add(1)
			}
		}()
	}
	await.True(t, func() bool { return countRows(t, env) > 500 }, "nothing is delivered")
	session, sender := s.pipeline.Progress().Session(), walsender(t, env)
	require.NoError(t, engine.Pause())
	frozen := commits.Load()
	<-time.After(10 * senderTimeout)
	await.True(t, func() bool { return commits.Load() > frozen+5000 }, "too few transactions for a full batch and the socket")
	buffered, _ := s.pipeline.Progress().Buffered()
	assert.Zero(t, s.seen.sessions.Load(), s.log.text())
	assert.LessOrEqual(t, buffered, int64(2*2000), "no more than two batches are in memory")
	require.NoError(t, engine.Resume())
	close(stop)
	for range cap(done) {
		require.NoError(t, <-done)
	}
	delivered(t, env)
	assert.Equal(t, session, s.pipeline.Progress().Session())
	assert.Equal(t, sender, walsender(t, env), "the walsender is the one of before")
	assert.Zero(t, s.seen.sessions.Load())
}
