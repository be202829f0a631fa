package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/pipeline"
)

func TestTheNetworkToPostgresIsCut(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toPostgres(t, env)
	s := start(t, env, through)
	stop := produce(t, env, 2)
	for range 3 {
		rows, sessions := countRows(t, env), s.seen.sessions.Load()
		await.True(t, func() bool { return countRows(t, env) > rows+100 }, "no rows through the network")
		n.cut()
		await.True(t, func() bool { return s.seen.sessions.Load() > sessions }, "the cut is not noticed")
		n.restore()
	}
	stop()
	delivered(t, env)
	producersInOrder(t, env)
}

// Half open: the connection looks alive and carries nothing any more. The
// streamer gives it up by itself, and so does the server, which frees the slot.
func TestTheNetworkToPostgresIsHalfOpen(t *testing.T) {
	t.Parallel()
	for name, streams := range map[string][]string{
		"nothing comes": {"downstream"}, "nothing goes": {"upstream"}, "neither": {"upstream", "downstream"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			n, through := toPostgres(t, env)
			s := start(t, env, through, func(c *setup) { c.SenderTimeout = 2 * time.Second })
			publish(t, env, 100)
			delivered(t, env)
			n.silence(streams...)
			publish(t, env, 100)
			await.True(t, func() bool { return s.seen.sessions.Load() > 0 }, "the silence is not noticed")
			n.heal()
			delivered(t, env)
		})
	}
}

// Connecting is bounded, too: a network that swallows everything is not waited for.
func TestTheNetworkIsSilentAtTheStart(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]func(testing.TB, *testenv.Env) (*network, func(*setup)){
		"PostgreSQL": toPostgres, "ClickHouse": toClickHouse,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			n, through := between(t, env)
			n.silence("downstream")
			s := launch(t, env, through, func(c *setup) { c.InsertTimeout = 3 * time.Second })
			await.True(t, func() bool { return s.seen.sessions.Load() > 0 }, "the silence is not noticed")
			n.heal()
			s.await(pipeline.Streaming)
			publish(t, env, 5)
			delivered(t, env)
		})
	}
}

// While ClickHouse refuses, the writer asks PostgreSQL whether the slot is still
// ours, and does not wait for that answer for ever either.
func TestTheNetworkToPostgresIsSilentWhileClickHouseRefuses(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toPostgres(t, env)
	s := start(t, env, through, func(c *setup) { c.SenderTimeout, c.InsertTimeout = 10*time.Minute, 3*time.Second })
	command(t, env, "ALTER TABLE LOG MODIFY SETTING table_readonly = 1")
	publish(t, env, 5)
	s.await(pipeline.Retrying)
	n.silence("downstream")
	await.True(t, func() bool { return s.seen.sessions.Load() > 0 }, "the silence is not noticed")
	n.heal()
	command(t, env, "ALTER TABLE LOG MODIFY SETTING table_readonly = 0")
	delivered(t, env)
}

func TestTheNetworkToPostgresIsSlow(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toPostgres(t, env)
	s := start(t, env, through, func(c *setup) { c.SenderTimeout = 3 * time.Second })
	sender := walsender(t, env)
	n.delay(400)
	publish(t, env, 2000)
	delivered(t, env)
	assert.Equal(t, sender, walsender(t, env), "slow is not dead")
	assert.Zero(t, s.seen.sessions.Load())
}

func TestTheNetworkToClickHouseIsCut(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toClickHouse(t, env)
	s := start(t, env, through)
	sender := walsender(t, env)
	stop := produce(t, env, 2)
	for range 3 {
		rows, retries := countRows(t, env), s.seen.retries.Load()
		await.True(t, func() bool { return countRows(t, env) > rows+100 }, "no rows through the network")
		n.cut()
		await.True(t, func() bool { return s.seen.retries.Load() > retries }, "the cut is not noticed")
		n.restore()
	}
	stop()
	delivered(t, env)
	producersInOrder(t, env)
	assert.Equal(t, sender, walsender(t, env))
}

// The connection breaks in the middle of a block, again and again: there is no
// part of a batch, and no second one.
func TestTheNetworkToClickHouseBreaksWithinABatch(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toClickHouse(t, env)
	// Only full batches: what is written before the break would be one, however slow the machine.
	s := start(t, env, through, func(c *setup) { c.FlushInterval = time.Minute })
	n.cutAfter(40_000)
	execute(t, env, `INSERT INTO outbox (event_type, event_context)
		SELECT 'random', to_json(string_agg(gen_random_uuid()::text, ' ')) FROM generate_series(1, 20000) AS n GROUP BY n`)
	await.True(t, func() bool { return s.seen.retries.Load() > 1 }, "the break is not noticed")
	assert.Zero(t, countRows(t, env), "a part of a batch")
	n.heal()
	delivered(t, env)
}

// The answer is lost and the rows are in: only reading back can tell.
func TestTheAnswerOfClickHouseIsLost(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toClickHouse(t, env)
	s := start(t, env, through, func(c *setup) { c.InsertTimeout = 2 * time.Second; c.FlushInterval = 10 * time.Millisecond })
	stop := produce(t, env, 2)
	for range 2 {
		rows, retries := countRows(t, env), s.seen.retries.Load()
		await.True(t, func() bool { return countRows(t, env) > rows+50 }, "no rows through the network")
		n.silence("downstream")
		await.True(t, func() bool { return s.seen.retries.Load() > retries }, "the silence is not noticed")
		n.heal()
	}
	stop()
	delivered(t, env)
	producersInOrder(t, env)
}

func TestTheNetworkToClickHouseIsSlow(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toClickHouse(t, env)
	s := start(t, env, through)
	n.delay(300)
	publish(t, env, 2000)
	delivered(t, env)
	assert.Zero(t, s.seen.retries.Load(), "slow is not dead")
}
