package e2e

import (
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
	"diehard/streamer/decode"
)

// message publishes an event without a table; row one with it.
const (
	message = `SELECT publish_event_message('%s', '{}')`
	row     = `INSERT INTO outbox (event_type, event_context) VALUES ('%s', '{}')`
)

// inOne runs statements in one transaction, which it commits.
func inOne(t testing.TB, env *testenv.Env, statements ...string) {
	t.Helper()
	require.NoError(t, pgx.BeginFunc(t.Context(), env.Pool, func(tx pgx.Tx) error {
		for _, statement := range statements {
			if _, err := tx.Exec(t.Context(), statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		return nil
	}))
}

func kind(statement, eventType string) string { return fmt.Sprintf(statement, eventType) }

// types returns the event types in stream order, with their numbers.
func types(t testing.TB, env *testenv.Env) []string {
	t.Helper()
	var all []string
	query := "SELECT groupArray(concat(toString(commit_seq), ' ', event_type)) FROM (SELECT * FROM " +
		env.ClickHouseConfig.EventLogTable + " ORDER BY commit_lsn, commit_seq)"
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), query).Scan(&all))
	return all
}

func TestMessagesAndRowsOfATransactionKeepTheirOrder(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env, withMessages)
	inOne(t, env,
		kind(message, "a"), kind(row, "b"), kind(message, "c"), kind(message, "d"),
		"SAVEPOINT s", kind(message, "gone"), kind(row, "gone"), "ROLLBACK TO s",
		"SAVEPOINT r", kind(row, "e"), kind(message, "f"), "RELEASE r", "SELECT pg_logical_emit_message(true, 'another prefix', 'x')",
		kind(row, "g"))
	execute(t, env, kind(message, "h"))
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), kind(message, "gone"))
	require.NoError(t, err)
	require.NoError(t, tx.Rollback(t.Context()))
	execute(t, env, kind(row, "i"))
	awaitRows(t, env, 9)
	assert.Equal(t, []string{"1 a", "2 b", "3 c", "4 d", "5 e", "6 f", "7 g", "1 h", "1 i"}, types(t, env))
	confirmedPast(t, env)
}

// The same transactions, read again and again from the middle.
func TestMessagesArriveOnceThroughCrashes(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	tight := func(c *setup) { withMessages(c); abrupt(c); c.Limits.Rows = 3 }
	start(t, env, tight).crash()
	var all []string
	for range 10 {
		all = append(all, kind(message, "m"), kind(row, "r"))
	}
	inOne(t, env, all...)
	for written := 0; written < 20; {
		holdAfter(t, env, 2)
		s := start(t, env, tight)
		await.True(t, func() bool { return s.seen.retries.Load() > 0 || countRows(t, env) == 20 }, "nothing is held up")
		s.crash()
		releaseParts(t, env)
		n := countRows(t, env)
		require.Greater(t, n, written, "rows are written before each crash")
		written = n
	}
	start(t, env, tight)
	confirmedPast(t, env)
	want := []string{}
	for i := range 10 {
		want = append(want, fmt.Sprint(2*i+1, " m"), fmt.Sprint(2*i+2, " r"))
	}
	assert.Equal(t, want, types(t, env))
}

// Which transactions have messages is decided once, in the WAL: one written in
// part before the setting was changed is not counted differently afterwards.
func TestSwitchingMessagesOnInTheMiddleOfATransactionDoublesNothing(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	tight := func(c *setup) { abrupt(c); c.Limits.Rows = 2 }
	first := start(t, env, tight)
	_, err := env.Pool.Exec(t.Context(), kind(message, "refused"))
	require.ErrorContains(t, err, "no streamer reads messages")
	holdAfter(t, env, 1)
	raw := `SELECT pg_logical_emit_message(true, 'diehard.event', '{"v":1,"id":"` + "0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b" +
		`","event_type":"unread","event_date_time":"2026-01-01T00:00:00Z"}' || E'\n{}')`
	inOne(t, env, raw, kind(row, "a"), raw, kind(row, "b"), raw, kind(row, "c"), kind(row, "d"), kind(row, "e"))
	await.True(t, func() bool { return first.seen.retries.Load() > 0 }, "nothing is held up")
	first.crash()
	require.Equal(t, 2, countRows(t, env))
	inOne(t, env, raw, kind(row, "f")) // nothing of it is written: it counts
	releaseParts(t, env)

	second := start(t, env, func(c *setup) { tight(c); withMessages(c) })
	execute(t, env, kind(message, "g"))
	awaitRows(t, env, 8)
	want := []string{"1 a", "2 b", "3 c", "4 d", "5 e", "1 unread", "2 f", "1 g"}
	assert.Equal(t, want, types(t, env))
	confirmedPast(t, env)
	second.crash()

	// Off again: publishing fails with an error, and what is on its way arrives.
	execute(t, env, kind(message, "h"))
	third := start(t, env, tight)
	awaitRows(t, env, 9)
	_, err = env.Pool.Exec(t.Context(), kind(message, "refused"))
	require.ErrorContains(t, err, "no streamer reads messages")
	require.ErrorIs(t, event.PublishMessages(t.Context(), env.Pool, event.Event{Type: "t", Context: json.RawMessage(`{}`)}), event.ErrPublish)
	third.crash()
	start(t, env, withMessages)
	execute(t, env, kind(message, "i"))
	awaitRows(t, env, 10)
	assert.Equal(t, append(want, "1 h", "1 i"), types(t, env))
}

// The same, when nothing of the transaction but a dead letter is written.
func TestSwitchingMessagesOnBehindADeadLetterDoublesNothing(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	tight := func(c *setup) { abrupt(c); c.Limits.Rows = 1 }
	first := start(t, env, tight)
	hold(t, env)
	env.AllowOutOfRange(t)
	const bad = `INSERT INTO outbox (event_type, event_context, event_date_time) VALUES ('bad', '{}', 'infinity')`
	raw := `SELECT pg_logical_emit_message(true, 'diehard.event', 'malformed, were it read')`
	inOne(t, env, raw, bad, kind(row, "a"))
	deadLetters(t, env, 1)
	await.True(t, func() bool { return first.seen.retries.Load() > 0 }, "nothing is held up")
	first.crash()
	release(t, env)
	start(t, env, func(c *setup) { tight(c); withMessages(c) })
	execute(t, env, kind(message, "b"))
	awaitRows(t, env, 2)
	assert.Equal(t, []string{"2 a", "1 b"}, types(t, env))
	deadLetters(t, env, 1)
}

// A slot that is made with messages has them from its beginning: the streamer may start later than the producers.
func TestMessagesBeforeTheFirstStartArrive(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	runArgs(t, env, "streamer", []string{"migrate", "up"}, "REPLICATION_MESSAGES=true").exit()
	execute(t, env, kind(message, "early"))
	run(t, env, "streamer", "REPLICATION_MESSAGES=true")
	awaitRows(t, env, 1)
}

func TestMalformedMessagesBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, withMessages)
	const header = `{"v":1,"id":"0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b","event_type":"t","event_date_time":"2026-01-01T00:00:00Z"}`
	contents := []string{"", "nonsense", header + "\n", header + "\n{", "{\"v\":2}\n{}", "\xff\xfe\n{}", header + "\n\"" + strings.Repeat("x", event.MaxContextBytes-1) + "\""}
	require.NoError(t, pgx.BeginFunc(t.Context(), env.Pool, func(tx pgx.Tx) error {
		for _, content := range contents {
			for _, statement := range []string{kind(message, "good"), "SELECT pg_logical_emit_message(true, 'diehard.event', $1::bytea)"} {
				var arguments []any
				if strings.Contains(statement, "$1") {
					arguments = append(arguments, []byte(content))
				}
				if _, err := tx.Exec(t.Context(), statement, arguments...); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	awaitRows(t, env, len(contents))
	for i, l := range deadLetters(t, env, len(contents)) {
		assert.EqualValues(t, 2*i+2, l.CommitSeq)
		assert.True(t, strings.HasPrefix(l.Reason, "message "), l.Reason)
		tuple, err := decode.ParseTuple(l.Raw)
		require.NoError(t, err)
		assert.Equal(t, contents[i], string(tuple.Columns[0].Value), "byte for byte")
	}
	assert.EqualValues(t, len(contents), s.seen.deadLetters.Load())
	confirmedPast(t, env)
}

// Without a place in the stream it can neither be delivered once nor become a
// dead letter: the log reports it, and nothing else changes.
func TestAMessageThatIsNotTransactionalIsLoggedAndNotDelivered(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, withMessages)
	execute(t, env, kind(row, "before"))
	execute(t, env, `SELECT pg_logical_emit_message(false, 'diehard.event', 'x'), pg_logical_emit_message(false, 'other', 'y')`)
	execute(t, env, kind(message, "after"))
	awaitRows(t, env, 2)
	assert.EqualValues(t, 1, s.pipeline.Progress().DroppedMessages())
	assert.Contains(t, s.log.text(), "DROPPED an event in a message that is not transactional")
	confirmedPast(t, env)
	deadLetters(t, env, 0)
}

func TestALargeTransactionOfMessagesTakesNoTable(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env, withMessages, func(c *setup) { c.Limits.Rows = 700 })
	execute(t, env, `SELECT count(publish_event_message('numbered', json_build_object('n', n))) FROM generate_series(1, 5000) AS n`)
	awaitRows(t, env, 5000)
	assert.Equal(t, 5000, count(t, env, "countIf(commit_seq = JSONExtractUInt(event_context, 'n'))", ""), "in their order")
	assert.Empty(t, outboxIDs(t, env))
	confirmedPast(t, env)
}

// Messages that are no events take no place in the stream, neither before nor after.
func TestMessagesOfOthersAreNoEvents(t *testing.T) {
	t.Parallel()
	for _, messages := range []bool{false, true} {
		env := newEnv(t)
		start(t, env, func(c *setup) { c.Origin.Messages = messages })
		inOne(t, env, "SELECT pg_logical_emit_message(true, 'audit', 'x')", kind(row, "a"), "SELECT pg_logical_emit_message(true, '', 'x')", kind(row, "b"))
		awaitRows(t, env, 2)
		assert.Equal(t, []string{"1 a", "2 b"}, types(t, env))
	}
}
