package e2e

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
	"diehard/streamer/replication"
)

// shard makes a streamer one of several.
func shard(index, count int) func(*setup) {
	return func(c *setup) {
		c.Origin.Shard = replication.Shard{Index: index, Count: count}
	}
}

// divide is `streamer migrate up` with shards.
func divide(t testing.TB, env *testenv.Env, count int) {
	t.Helper()
	p := runArgs(t, env, "streamer", []string{"migrate", "up"}, fmt.Sprintf("STREAMER_SHARD=1/%d", count))
	require.Zero(t, p.exit())
	for _, s := range (replication.Shard{Index: 1, Count: count}).All() {
		var there bool
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)", s.Name(env.Slot)).Scan(&there))
		require.True(t, there, "%s: %s", s, p.log.text())
	}
}

func needRowFilters(t *testing.T, env *testenv.Env) {
	t.Helper()
	if env.Major(t) < 15 {
		t.Skip("row filters came with PostgreSQL 15")
	}
}

// keyed commits events from up to, but without, to for each of several keys, one in
// a transaction or all of a round in one.
func keyed(t testing.TB, env *testenv.Env, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		var events []event.Event
		for k := range 8 {
			e, err := event.New(keyedContext{K: k, I: i}, event.WithKey(fmt.Sprint("key ", k)), event.WithType("keyed"))
			require.NoError(t, err)
			events = append(events, e)
		}
		if i%2 == 0 {
			require.NoError(t, event.Publish(t.Context(), env.Pool, events...))
			continue
		}
		for _, e := range events {
			require.NoError(t, event.Publish(t.Context(), env.Pool, e))
		}
	}
}

type keyedContext struct {
	K int `json:"k"`
	I int `json:"i"`
}

func TestTwoShardsDeliverEveryEventOnceAndKeepTheOrderOfAKey(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	needRowFilters(t, env)
	divide(t, env, 2)
	publish(t, env, 100) // before any streamer runs
	second := start(t, env, shard(2, 2), withMessages, abrupt)
	first := start(t, env, shard(1, 2), withMessages, abrupt)
	keyed(t, env, 0, 20)
	second.crash()
	keyed(t, env, 20, 40)
	first.crash()
	keyed(t, env, 40, 60)
	start(t, env, shard(1, 2), withMessages)
	start(t, env, shard(2, 2), withMessages)
	require.Equal(t, 100+60*8, delivered(t, env))

	assert.Equal(t, 2, count(t, env, "uniqExact(source)", ""))
	assert.Equal(t, 8, count(t, env, "uniqExact((source, JSONExtractInt(event_context, 'k')))", "WHERE event_type = 'keyed'"), "a key stays with its shard")
	disordered := `SELECT toInt64(countIf(i < before)) FROM (SELECT JSONExtractInt(event_context, 'i') AS i,
		lagInFrame(i, 1, 0) OVER (PARTITION BY JSONExtractInt(event_context, 'k') ORDER BY ingested_at, commit_lsn, commit_seq) AS before
		FROM ` + env.ClickHouseConfig.EventLogTable + ` WHERE event_type = 'keyed')`
	var n int64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), disordered).Scan(&n))
	assert.Zero(t, n, "events of a key arrive in their order")
	assert.Positive(t, count(t, env, "count()", "WHERE endsWith(source, '_1_of_2')"))

	// Publications do not filter messages: the first shard takes all.
	execute(t, env, `SELECT count(publish_event_message('sent', '{}')) FROM generate_series(1, 50)`)
	awaitRows(t, env, 100+60*8+50)
	assert.Equal(t, 50, count(t, env, "count()", "WHERE event_type = 'sent' AND endsWith(source, '_1_of_2')"))
}

// From one streamer to two, without loss and without a duplicate.
func TestGoingFromOneStreamerToShards(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	needRowFilters(t, env)
	whole := start(t, env)
	publish(t, env, 100)
	divide(t, env, 2)
	stop := produce(t, env, 2)
	n := countRows(t, env)
	await.True(t, func() bool { return countRows(t, env) > n+50 }, "no rows")
	early := launch(t, env, shard(1, 2))
	require.ErrorContains(t, early.refusal(), "divides the outbox differently")
	whole.stop()
	at := slotLSN(t, env, "confirmed_flush_lsn")
	from := func(c *setup) { c.StartLSN = at }
	start(t, env, shard(1, 2), from)
	start(t, env, shard(2, 2), from)
	stop()
	delivered(t, env)
	producersInOrderPerShard(t, env)
	again := launch(t, env)
	require.ErrorContains(t, again.refusal(), "divides the outbox differently")
}

// The streamer before has delivered a part of a transaction, and confirmed nothing of it.
func TestGoingToShardsInTheMiddleOfATransaction(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	needRowFilters(t, env)
	whole := start(t, env, abrupt, func(c *setup) { c.Limits.Rows = 100 })
	publish(t, env, 10)
	delivered(t, env)
	divide(t, env, 2)
	holdAfter(t, env, 3)
	publish(t, env, 10_000)
	await.True(t, func() bool { return whole.seen.retries.Load() > 0 }, "ClickHouse takes everything")
	whole.crash()
	releaseParts(t, env)
	some := countRows(t, env)
	require.Less(t, some, 10_010)
	require.Greater(t, some, 10, "the transaction is in event_log in part")

	for _, at := range []pglogrepl.LSN{0, slotLSN(t, env, "confirmed_flush_lsn")} {
		err := launch(t, env, shard(1, 2), func(c *setup) { c.StartLSN = at }).refusal()
		require.ErrorContains(t, err, "start its streamer again")
	}
	whole = start(t, env)
	delivered(t, env)
	await.True(t, func() bool { return slotLSN(t, env, "confirmed_flush_lsn") >= walEndBefore(t, env)+1 }, "all is confirmed")
	whole.stop()

	for _, index := range []int{1, 2} {
		c := advised(t, launch(t, env, shard(index, 2)).refusal())
		start(t, env, shard(index, 2), c)
	}
	publish(t, env, 100)
	require.Equal(t, 10_110, delivered(t, env))
}

// What was skipped once must not come again, as long as nothing is written that shows it.
func TestShardsThatForgetWhereToBeginAreRefused(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	needRowFilters(t, env)
	whole := start(t, env)
	divide(t, env, 2)
	publish(t, env, 100)
	delivered(t, env)
	end := walEnd(t, env)
	await.True(t, func() bool { return slotLSN(t, env, "confirmed_flush_lsn") >= end }, "all is confirmed")
	whole.stop()
	from := advised(t, launch(t, env, shard(1, 2)).refusal())
	execute(t, env, "SELECT pg_drop_replication_slot($1)", env.Slot)
	gone := launch(t, env, shard(2, 2)).refusal()
	require.ErrorContains(t, gone, "streamer replay --from-table")
	start(t, env, shard(1, 2), from)
	start(t, env, shard(2, 2), advised(t, gone))
	publish(t, env, 100)
	require.Equal(t, 200, delivered(t, env))
}

// Both have looked before either has its slot.
func TestDivisionsThatStartTogetherSeeEachOther(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	needRowFilters(t, env)
	start(t, env).stop()
	divide(t, env, 2)
	publish(t, env, 10)
	lock, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = lock.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = lock.Exec(t.Context(), "LOCK TABLE diehard_slot") // which is read between the look and the slot
	require.NoError(t, err)
	both := []*streamer{launch(t, env), launch(t, env, shard(1, 2))}
	await.True(t, func() bool {
		var waiting int
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'diehard_slot'::regclass").Scan(&waiting))
		return waiting == len(both)
	}, "they do not wait")
	require.NoError(t, lock.Rollback(t.Context()))
	select {
	case <-both[0].done:
	case <-both[1].done:
	case <-time.After(await.Limit):
		require.Fail(t, "both run")
	}
	for _, s := range both {
		s.cancel()
		<-s.done
	}
	require.ErrorContains(t, errors.Join(both[0].err, both[1].err), "divide")
	require.LessOrEqual(t, countRows(t, env), 10)
}

var startLSN = regexp.MustCompile(`streamer run --start-lsn ([0-9A-F]+/[0-9A-F]+)`)

// advised follows what a refusal says.
func advised(t testing.TB, refusal error) func(*setup) {
	t.Helper()
	found := startLSN.FindStringSubmatch(refusal.Error())
	require.NotNil(t, found, "%v", refusal)
	at, err := pglogrepl.ParseLSN(found[1])
	require.NoError(t, err)
	return func(c *setup) { c.StartLSN = at }
}

// producersInOrderPerShard: without keys the order is that of each shard.
func producersInOrderPerShard(t testing.TB, env *testenv.Env) {
	t.Helper()
	var n uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), `SELECT countIf(here < before) FROM (SELECT JSONExtractUInt(event_context, 'i') AS here,
		lagInFrame(here, 1, 0) OVER (PARTITION BY source, event_type ORDER BY commit_lsn, commit_seq) AS before
		FROM `+env.ClickHouseConfig.EventLogTable+` WHERE startsWith(event_type, 'producer_'))`).Scan(&n))
	require.Zero(t, n)
}

func TestShardsThatWouldLoseOrDoubleAreRefused(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	if env.Major(t) < 15 {
		require.ErrorContains(t, launch(t, env, shard(1, 2)).refusal(), "PostgreSQL has from version 15 on")
		return
	}
	require.ErrorContains(t, launch(t, env, shard(1, 2)).refusal(), "run `streamer migrate up` with STREAMER_SHARD = 1/2")
	divide(t, env, 2)
	filter := func(publication, condition string) {
		execute(t, env, "ALTER PUBLICATION "+publication+" SET TABLE outbox WHERE ("+condition+")")
	}
	one := env.Publication + "_1_of_2"
	// Of the other shard, too: together they would not be complete.
	for _, condition := range []string{"get_byte(uuid_send(id), 15) % 2 = 1", "get_byte(uuid_send(id), 15) % 3 = 0", "true"} {
		filter(one, condition)
		for _, index := range []int{1, 2} {
			require.ErrorContains(t, launch(t, env, shard(index, 2)).refusal(), "events go to two shards or to none")
		}
	}
	filter(one, "get_byte(uuid_send(id), 15) % 2 = 0")
	execute(t, env, "DROP PUBLICATION "+env.Publication+"_2_of_2")
	require.ErrorContains(t, launch(t, env, shard(1, 2)).refusal(), "_2_of_2 is missing")
	filter(env.Publication, "event_type <> 'x'")
	require.ErrorContains(t, launch(t, env).refusal(), "row filter")
}

func TestAShardWithoutItsSlotIsReported(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	needRowFilters(t, env)
	divide(t, env, 3)
	execute(t, env, "SELECT pg_drop_replication_slot($1)", env.Slot+"_2_of_3")
	s := start(t, env, shard(1, 3))
	assert.Contains(t, s.log.text(), "other shards have no slot")
	assert.Contains(t, s.log.text(), env.Slot+"_2_of_3")
}

// Retention keeps what one of the shards has not confirmed.
func TestRetentionWaitsForEveryShard(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	needRowFilters(t, env)
	divide(t, env, 2)
	first := start(t, env, shard(1, 2))
	publish(t, env, 50)
	await.True(t, func() bool { return first.pipeline.Progress().Confirmed() >= walEndBefore(t, env) }, "the first shard confirms")
	confirmed := func() pglogrepl.LSN { return lsn(t, env, "SELECT outbox_confirmed()::text") }
	held := lsn(t, env, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", env.Slot+"_2_of_2")
	assert.Equal(t, held, confirmed(), "the slower shard decides")
	start(t, env, shard(2, 2))
	delivered(t, env)
	await.True(t, func() bool { return confirmed() > held }, "both confirm")
}

// walEndBefore is the end of the last event's transaction, or a little before.
func walEndBefore(t testing.TB, env *testenv.Env) pglogrepl.LSN {
	t.Helper()
	var max uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT max(commit_lsn) FROM "+env.ClickHouseConfig.EventLogTable).Scan(&max))
	if max == 0 {
		return ^pglogrepl.LSN(0)
	}
	return pglogrepl.LSN(max)
}

func TestShardProgramsTakeTheirNamesFromTheSetting(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	needRowFilters(t, env)
	divide(t, env, 2)
	one := run(t, env, "streamer", "STREAMER_SHARD=1/2")
	two := run(t, env, "streamer", "STREAMER_SHARD=2/2")
	publish(t, env, 100)
	delivered(t, env)
	assert.Equal(t, env.Slot+"_1_of_2", one.says("streaming")["slot"])
	assert.Equal(t, env.Publication+"_2_of_2", two.says("streaming")["publication"])
	for _, index := range []string{"1/2", "2/2"} { // each knows which rows of the outbox are its own
		verify := runArgs(t, env, "streamer", []string{"verify"}, "STREAMER_SHARD="+index)
		require.Zero(t, verify.exit(), verify.log.text())
		assert.Contains(t, verify.log.text(), " 0 missing, 0 extra")
		assert.False(t, strings.HasPrefix(verify.log.text(), "100 events"), "half of them")
		replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"}, "STREAMER_SHARD="+index)
		require.Zero(t, replay.exit(), replay.log.text())
	}
	delivered(t, env)
	wrong := run(t, env, "streamer", "STREAMER_SHARD=3/2")
	require.Equal(t, 1, wrong.exit())
	assert.Contains(t, wrong.log.text(), "STREAMER_SHARD")
}
