package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/pipeline"
	"diehard/streamer/replication"
)

// openInsert inserts in a transaction that stays open, while the publication holds another table.
func openInsert(t testing.TB, env *testenv.Env) pgx.Tx {
	t.Helper()
	execute(t, env, "ALTER PUBLICATION outbox_pub SET TABLE users")
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES ('late', '{}')")
	require.NoError(t, err)
	return tx
}

// A change is sent by the publication at its place in the WAL: a transaction that wrote
// while it was another one and commits after the look is waited for.
func TestTheProofWaitsForOpenTransactions(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	delivering(t, env, 5).stop()
	before := slotLSN(t, env, "confirmed_flush_lsn")
	tx := openInsert(t, env)
	execute(t, env, "ALTER PUBLICATION outbox_pub SET TABLE outbox")
	s := start(t, env)
	execute(t, env, "SELECT pg_logical_emit_message(false, 'test', 'x')")
	end := walEnd(t, env)
	execute(t, env, "SELECT pg_logical_emit_message(true, 'test', 'x')")
	await.True(t, func() bool { return s.pipeline.Progress().Durable() >= end }, "the stream does not get there")
	assert.Equal(t, before, slotLSN(t, env, "confirmed_flush_lsn"), "nothing is proved yet")
	require.NoError(t, tx.Commit(t.Context())) // the first row that the walsender sees of the outbox, with the publication of its time
	publish(t, env, 3)
	says(t, s.refusal(), accept...)
	assert.Equal(t, before, slotLSN(t, env, "confirmed_flush_lsn"))
	slotCommand(t, env, "accept")
	start(t, env)
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	delivered(t, env)
}

// A transaction's events bear the time at which it began, however long ago that was.
func TestTheProofFindsWhatAnOldTransactionPublished(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	delivering(t, env, 5).stop()
	execute(t, env, "UPDATE diehard_slot SET delivered_since = '-infinity'") // the slot is not from today
	tx := openInsert(t, env)
	_, err := tx.Exec(t.Context(), "UPDATE outbox SET published_at = now() - interval '3 hours' WHERE event_type = 'late'")
	require.NoError(t, err)
	execute(t, env, "ALTER PUBLICATION outbox_pub SET TABLE outbox")
	s := start(t, env)
	require.NoError(t, tx.Commit(t.Context()))
	publish(t, env, 3)
	says(t, s.refusal(), accept...)
}

// So does the operator's word: a replay behind it finds what those transactions wrote.
func TestAcceptWaitsForOpenTransactions(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	delivering(t, env, 5).stop()
	tx := openInsert(t, env)
	publish(t, env, 3)
	execute(t, env, "ALTER PUBLICATION outbox_pub SET TABLE outbox")
	refused := runArgs(t, env, "streamer", []string{"slot", "accept"})
	require.NotZero(t, refused.exit())
	assert.Contains(t, refused.log.text(), "transactions that may have written events are still open: process ")
	require.NoError(t, tx.Commit(t.Context()))
	slotCommand(t, env, "accept")
	start(t, env)
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "4 were missing, 4 of them are filled now")
	delivered(t, env)
}

// Rows of a default partition that was taken out of the outbox are looked at as well.
func TestTheProofReadsDetachedPartitions(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	delivering(t, env, 5).stop()
	day := time.Now().UTC().Format("20060102")
	execute(t, env, "ALTER TABLE outbox DETACH PARTITION diehard_outbox_p"+day)
	execute(t, env, "ALTER TABLE diehard_outbox_p"+day+" RENAME TO away")
	execute(t, env, "ALTER PUBLICATION outbox_pub SET TABLE users")
	publish(t, env, 3)
	execute(t, env, "ALTER PUBLICATION outbox_pub SET TABLE outbox")
	says(t, launch(t, env).refusal(), accept...)
	execute(t, env, "SELECT outbox_create_partitions(7, 8)") // as the streamer does each minute
	says(t, launch(t, env).refusal(), accept...)
	slotCommand(t, env, "accept")
	start(t, env)
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "3 were missing, 3 of them are filled now")
}

// What is committed while `slot finish` looks stays in the slot.
func TestFinishingASlotConfirmsNothingThatIsCommittedMeanwhile(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	delivering(t, env, 5).stop()
	for range 10 {
		c, err := replication.OpenControl(t.Context(), env.PostgresURL, "diehard-streamer-command", replication.Origin{Slot: env.Slot, Publication: env.Publication})
		require.NoError(t, err)
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			_, _ = c.FinishSlot(t.Context()) // refused, or done before or after
		}()
		trickle(t, env, 2)
		<-finished
		c.Close(t.Context())
		s := start(t, env)
		delivered(t, env)
		s.stop()
	}
}

// A range that is not confirmed keeps the origin it was read with.
func TestTheOriginChangesOnlyBehindWhatIsConfirmed(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	if env.Major(t) < 16 {
		t.Skip("REPLICATION_ORIGIN = none needs PostgreSQL 16")
	}
	t.Cleanup(func() {
		_, _ = env.Pool.Exec(context.WithoutCancel(t.Context()), "SELECT pg_replication_origin_drop($1)", env.Slot)
	})
	s := start(t, env, abrupt)
	publish(t, env, 5)
	delivered(t, env)
	holdAfter(t, env, 0) // when the insert is registered, and its intent written
	bySubscription(t, env, 2)
	await.True(t, func() bool {
		var unfinished bool
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT intent->>'after' <> intent->>'through' FROM diehard_intent").Scan(&unfinished))
		return unfinished && s.pipeline.Progress().State() == pipeline.Retrying
	}, "no intent")
	s.crash()
	releaseParts(t, env)
	none := func(c *setup) { c.Origin.LocalOnly = true }
	says(t, launch(t, env, none).refusal(), "REPLICATION_ORIGIN was any", "stop it when it is idle")
	s = start(t, env)
	delivered(t, env)
	end := walEnd(t, env)
	await.True(t, func() bool { return slotLSN(t, env, "confirmed_flush_lsn") >= end }, "it is not confirmed")
	s.stop()
	start(t, env, none)
	publish(t, env, 3)
	delivered(t, env)
}

// bySubscription inserts as the worker of a subscription does.
func bySubscription(t testing.TB, env *testenv.Env, n int) {
	t.Helper()
	conn, err := env.Pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	for _, statement := range []string{"SELECT pg_replication_origin_create($1)", "SELECT pg_replication_origin_session_setup($1)"} {
		_, err = conn.Exec(t.Context(), statement, env.Slot)
		require.NoError(t, err)
	}
	for range n {
		_, err = conn.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES ('remote', '{}')")
		require.NoError(t, err)
	}
	_, err = conn.Exec(t.Context(), "SELECT pg_replication_origin_session_reset()")
	require.NoError(t, err)
}

// What a subscription wrote is the other streamer's to deliver: where PostgreSQL knows those
// rows, a changed publication does not ask for them.
func TestTheProofLeavesOutWhatASubscriptionWrote(t *testing.T) {
	t.Parallel()
	env, _ := ownPostgres(t, map[string]string{"track_commit_timestamp": "on"})
	if env.Major(t) < 16 {
		t.Skip("REPLICATION_ORIGIN = none needs PostgreSQL 16")
	}
	none := func(c *setup) { c.Origin.LocalOnly = true }
	s := start(t, env, none)
	publish(t, env, 5)
	awaitRows(t, env, 5)
	bySubscription(t, env, 2)
	s.stop()
	execute(t, env, "ALTER PUBLICATION outbox_pub SET (publish = 'insert')")
	start(t, env, none)
	publish(t, env, 1)
	awaitRows(t, env, 6)
	awaitProved(t, env)
}

// Retention keeps what --start-lsn has skipped until it is replayed.
func TestRetentionKeepsWhatWasSkipped(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	delivering(t, env, 5).stop()
	partition := oldEvents(t, env, 3)
	end := walEnd(t, env)
	s := start(t, env, func(c *setup) { c.StartLSN = end })
	publish(t, env, 2)
	awaitRows(t, env, 7)
	retire(t, env)
	assert.True(t, exists(t, env, partition))
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "3 were missing, 3 of them are filled now")
	await.True(t, func() bool { retire(t, env); return !exists(t, env, partition) }, "what is delivered is never retired")
	s.stop()
}

// After a failover to a standby whose slot is behind, what it delivers again is looked for; what is
// missing is named, and comes back by the command that the log names.
func TestWhatASlotDeliversAgainIsLookedFor(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	brief := func(c *setup) { c.InsertTimeout = time.Second } // is waited for
	s := start(t, env, brief)
	publish(t, env, 5)
	delivered(t, env)
	s.stop()
	older := env.Slot + "_older"
	execute(t, env, "SELECT pg_copy_logical_replication_slot($1, $2)", env.Slot, older)
	failOver := func() *streamer {
		execute(t, env, "SELECT pg_drop_replication_slot($1)", env.Slot)
		execute(t, env, "SELECT pg_copy_logical_replication_slot($1, $2)", older, env.Slot)
		execute(t, env, "UPDATE diehard_intent SET timeline = timeline + 1")
		return launch(t, env, brief)
	}
	s = start(t, env, brief)
	publish(t, env, 5)
	delivered(t, env)
	s.stop()
	var id string
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT toString(event_id) FROM "+env.ClickHouseConfig.EventLogTable+
		" ORDER BY commit_lsn DESC, commit_seq DESC LIMIT 1 OFFSET 2").Scan(&id))
	command(t, env, "ALTER TABLE LOG DELETE WHERE event_id = toUUID('"+id+"') SETTINGS mutations_sync = 2")

	s = failOver()
	await.True(t, func() bool { return s.seen.missing.Load() == 1 }, "it is not missed")
	assert.Contains(t, s.log.text(), "the first is "+id)
	publish(t, env, 5)
	await.True(t, func() bool { return countRows(t, env) == 14 }, "the stream does not go on")
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "1 were missing, 1 of them are filled now")
	s.stop()

	s = failOver() // it is there under its id alone
	publish(t, env, 1)
	await.True(t, func() bool { return countRows(t, env) == 16 }, "the stream does not go on")
	assert.Zero(t, s.seen.missing.Load())
	execute(t, env, "SELECT pg_drop_replication_slot($1)", older)
	require.Equal(t, 16, delivered(t, env))
}
