package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/pipeline"
)

func TestAStandbyWaitsAndTakesOverAfterADeath(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := run(t, env, "streamer")
	first.says("streaming")
	stop := produce(t, env, 2)
	second := launch(t, env)
	second.await(pipeline.Standby)
	assert.Contains(t, second.log.text(), "standby: another streamer holds the slot")
	rows := countRows(t, env)
	eventually(t, func() bool { return countRows(t, env) > rows+100 }, "the first does not go on")
	assert.Equal(t, pipeline.Standby, second.pipeline.Progress().State())

	first.kill()
	second.await(pipeline.Streaming)
	rows = countRows(t, env)
	eventually(t, func() bool { return countRows(t, env) > rows+100 }, "the second does not go on")
	stop()
	delivered(t, env)
	producersInOrder(t, env)
}

func TestAStandbyTakesOverAfterAStop(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := start(t, env)
	second := launch(t, env)
	second.await(pipeline.Standby)
	publish(t, env, 10)
	delivered(t, env)
	first.stop()
	second.await(pipeline.Streaming)
	publish(t, env, 10)
	delivered(t, env)
}

// The first is frozen with rows in its hands, is replaced, and wakes up: what it
// still wants to write must not land, and it becomes the standby.
func TestAFrozenStreamerIsReplacedAndWakesUpAsStandby(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := run(t, env, "streamer", "REPLICATION_SENDER_TIMEOUT=2s")
	first.says("streaming")
	stop := produce(t, env, 4)
	eventually(t, func() bool { return countRows(t, env) > 300 }, "the first does not begin")
	second := launch(t, env)
	second.await(pipeline.Standby)

	first.signal(syscall.SIGSTOP)
	second.await(pipeline.Streaming)
	rows := countRows(t, env)
	eventually(t, func() bool { return countRows(t, env) > rows+100 }, "the second does not go on")
	first.signal(syscall.SIGCONT)
	first.says("standby: another streamer holds the slot")
	rows = countRows(t, env)
	eventually(t, func() bool { return countRows(t, env) > rows+100 }, "the second is disturbed")
	stop()
	delivered(t, env)
	producersInOrder(t, env)
	assert.Zero(t, second.seen.sessions.Load())
}

// A streamer that waits for ClickHouse is replaced too: it holds rows, and a
// server that has ended its session.
func TestAFrozenStreamerWithAPendingInsertIsReplaced(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := run(t, env, "streamer", "REPLICATION_SENDER_TIMEOUT=2s")
	first.says("streaming")
	hold(t, env)
	trickle(t, env, 20)
	first.says("ClickHouse did not take")
	first.signal(syscall.SIGSTOP)
	second := start(t, env, func(c *setup) { c.SenderTimeout = 2 * time.Second })
	release(t, env)
	delivered(t, env)
	first.signal(syscall.SIGCONT)
	first.says("standby: another streamer holds the slot")
	trickle(t, env, 20)
	delivered(t, env)
	second.stop()
	trickle(t, env, 20)
	delivered(t, env)
	first.signal(syscall.SIGTERM)
	require.Zero(t, first.exit())
}
