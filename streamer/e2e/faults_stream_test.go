package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/streamer/decode"
	"diehard/streamer/pipeline"
)

// The sink stands still for longer than wal_sender_timeout: the walsender
// must hear from us all the same.
func TestF05_AStalledSinkCostsTheWalsender(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, func(c *setup) { c.SenderTimeout, c.Limits.Rows = 5*time.Second, 100 })
	sender := walsender(t, env)
	hold(t, env)
	publish(t, env, 5000) // the reader is blocked, too
	await.True(t, func() bool { return s.seen.retries.Load() > 0 }, "ClickHouse is not asked")
	<-time.After(3 * s.cfg.SenderTimeout / 2)
	assert.Equal(t, sender, walsender(t, env))
	release(t, env)
	delivered(t, env)
	assert.Equal(t, sender, walsender(t, env))
	assert.Zero(t, s.seen.sessions.Load())
}

// Numbers beyond 2^53 and their form survive, from json and from jsonb.
func TestF07_NumbersGoThroughFloat64(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	const exact = `{"n": 9007199254740993, "d": 0.1000000000000000055511151231257827, "e": 1E400}`
	execute(t, env, `INSERT INTO outbox (event_type, event_context) VALUES ('json', $1::text::json)`, exact)
	execute(t, env, `SELECT publish_event('jsonb', $1::text::jsonb)`, exact)
	execute(t, env, `DROP VIEW diehard_events`)
	execute(t, env, `ALTER TABLE outbox DROP CONSTRAINT outbox_event, ALTER COLUMN event_context TYPE jsonb`)
	execute(t, env, `INSERT INTO outbox (event_type, event_context) VALUES ('jsonb column', $1::text::jsonb)`, exact)
	delivered(t, env)
	assert.Equal(t, exact, readRow(t, env, "json").Context)
	normal := `{"d": 0.1000000000000000055511151231257827, "e": 1` + strings.Repeat("0", 400) + `, "n": 9007199254740993}`
	assert.Equal(t, normal, readRow(t, env, "jsonb").Context)
	assert.Equal(t, normal, readRow(t, env, "jsonb column").Context)
}

// Whatever cannot be handled is reported: a row in the dead-letter table and the
// log, an error of the server in the log and the state.
func TestF09_ErrorsAreSwallowed(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	env.AllowOutOfRange(t)
	s := start(t, env)
	execute(t, env, "INSERT INTO outbox "+undecodable[0].row)
	deadLetters(t, env, 1)
	await.True(t, func() bool {
		return strings.Contains(s.log.text(), "level=ERROR msg=\"row written to the dead-letter table\"")
	}, "a row becomes a dead letter in silence")
	assert.NotContains(t, s.log.text(), `{"n": 1}`, "a payload in the log")

	execute(t, env, "SELECT pg_terminate_backend($1)", walsender(t, env))
	await.True(t, func() bool { return s.seen.sessions.Load() == 1 }, "an error of the server is not noticed")
	err, at := s.pipeline.Progress().LastError()
	require.ErrorContains(t, err, "terminating connection")
	assert.WithinDuration(t, time.Now(), at, await.Limit)

	hold(t, env)
	trickle(t, env, 3)
	s.await(pipeline.Retrying)
	release(t, env)
	awaitRows(t, env, 3)
}

// A transaction that takes far longer than wal_sender_timeout to write.
func TestF12_ALargeTransactionStarvesTheStatusUpdates(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toClickHouse(t, env)
	s := start(t, env, through, func(c *setup) { c.SenderTimeout, c.Limits.Rows = 5*time.Second, 1000 })
	sender := walsender(t, env)
	n.delay(50) // 50 inserts of several round trips each
	execute(t, env, `INSERT INTO outbox (event_type, event_context)
		SELECT 'wide', to_json(repeat('x', 500)) FROM generate_series(1, 50000)`)
	delivered(t, env)
	assert.Equal(t, sender, walsender(t, env))
	assert.Zero(t, s.seen.sessions.Load())
	assert.Equal(t, 1, count(t, env, "uniqExact(commit_lsn)", ""))
}

// The rows of one COPY share an LSN: it is no identity. A crash in the middle of
// them repeats none and leaves none out.
func TestF14_RowsOfOneCopyShareAnLSN(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, abrupt, func(c *setup) { c.Limits.Rows = 100 })
	holdAfter(t, env, 3)
	conn, err := env.Pool.Acquire(t.Context())
	require.NoError(t, err)
	_, err = conn.Conn().PgConn().CopyFrom(t.Context(), strings.NewReader(strings.Repeat("copied\t{}\n", 1000)),
		"COPY outbox (event_type, event_context) FROM STDIN")
	conn.Release()
	require.NoError(t, err)
	await.True(t, func() bool { return s.seen.retries.Load() > 0 }, "ClickHouse is not asked")
	written := countRows(t, env)
	require.Positive(t, written)
	require.Less(t, written, 1000)
	s.crash()
	require.Equal(t, 1000, pending(t, env), "a transaction is acknowledged with its last row")
	releaseParts(t, env)
	start(t, env, func(c *setup) { c.Limits.Rows = 170 }) // the boundaries differ now
	require.Equal(t, 1000, delivered(t, env))
	assert.Equal(t, 1000, count(t, env, "uniqExact(commit_seq)", ""))
}

// Every prefix of a real stream's messages is an error, and never a panic.
func TestF15_TruncatedMessagesPanic(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env).stop()
	publish(t, env, 2)
	var messages [][]byte
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT array_agg(data) FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', $2, 'binary', 'true')`, env.Slot, env.Publication).Scan(&messages))
	require.GreaterOrEqual(t, len(messages), 5, "begin, relation, two rows, commit")
	for i, message := range messages {
		for n := range message {
			var rows decode.Rows
			decoder := decode.NewDecoder(decode.Position{})
			for _, earlier := range messages[:i] {
				_, err := decoder.Decode(earlier, &rows)
				require.NoError(t, err)
			}
			before := rows.Len()
			require.NotPanics(t, func() {
				_, err := decoder.Decode(message[:n], &rows)
				require.Error(t, err, "%d of the %d bytes of message %d", n, len(message), i)
			})
			require.Equal(t, before, rows.Len()+len(rows.Rejects))
		}
	}
}

// A connection that breaks while a batch is on its way leaves the library's
// batch unusable, and an error that the server sends at the very end must be heard.
func TestF16_ABrokenConnectionLeavesABatchBehind(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	n, through := toClickHouse(t, env)
	s := start(t, env, through)
	for _, bytes := range []int{100, 2_000, 20_000, 60_000} { // in the greeting, the query, the block
		n.cutAfter(bytes)
		retries := s.seen.retries.Load()
		execute(t, env, `INSERT INTO outbox (event_type, event_context)
			SELECT 'random', to_json(string_agg(gen_random_uuid()::text, ' ')) FROM generate_series(1, 5000) AS n GROUP BY n`)
		await.True(t, func() bool { return s.seen.retries.Load() > retries }, "the break after %d bytes is not noticed", bytes)
		n.heal()
		delivered(t, env)
	}
	command(t, env, "ALTER TABLE LOG ADD CONSTRAINT late CHECK throwIf(event_type = 'numbered') = 0")
	publish(t, env, 1)
	deadLetters(t, env, 1)
	awaitRows(t, env, 20_000)
}
