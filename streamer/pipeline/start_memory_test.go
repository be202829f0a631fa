package pipeline

import (
	"context"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// However many dead letters lie behind the last good row, a start reads none of them. The test
// is not parallel: it measures what the process allocates.
func TestAStartDoesNotReadDeadLetters(t *testing.T) {
	env := testenv.New(t)
	allocatedByAStart(t, env) // makes the slot, and writes a row
	without := allocatedByAStart(t, env)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), `INSERT INTO event_dead_letter
		(source, timeline, commit_lsn, commit_seq, commit_time, event_type, reason, failed_at)
		SELECT source, timeline, commit_lsn, number + 2, commit_time, 'bad', 'refused', now()
		FROM (SELECT * FROM event_log ORDER BY commit_lsn DESC LIMIT 1) AS last CROSS JOIN numbers(500000) AS n`))
	with := allocatedByAStart(t, env)
	t.Logf("%d KiB, with the dead letters %d KiB", without>>10, with>>10)
	assert.Less(t, with, without+4<<20)
}

// allocatedByAStart runs a streamer until it has written an event, and returns the bytes it allocates.
func allocatedByAStart(t *testing.T, env *testenv.Env) uint64 {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p := onServers(env)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	await.True(t, func() bool { return p.Progress().State() == Streaming }, "it never has the slot")
	_, err := env.Pool.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')")
	require.NoError(t, err)
	await.True(t, func() bool { return p.Progress().flushes.Load() > 0 }, "nothing is written")
	stop()
	require.NoError(t, <-ended)
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
