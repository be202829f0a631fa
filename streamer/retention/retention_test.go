package retention_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
	"diehard/streamer/retention"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const week = 7 * 24 * time.Hour

// aged is an outbox with partitions of the past and a slot that has seen nothing of them.
type aged struct {
	*testenv.Env
	t          *testing.T
	maintainer *retention.Maintainer
}

func newAged(t *testing.T) *aged {
	t.Helper()
	env := testenv.New(t)
	a := &aged{Env: env, t: t, maintainer: &retention.Maintainer{
		Postgres: env.Pool, Retention: week, Active: func() bool { return true }, Log: slog.New(slog.DiscardHandler),
	}}
	a.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
	a.exec(`INSERT INTO diehard_slot (slot_name, delivered_since) VALUES ($1, '-infinity')`, env.Slot)
	return a
}

func (a *aged) exec(sql string, args ...any) {
	a.t.Helper()
	_, err := a.Pool.Exec(a.t.Context(), sql, args...)
	require.NoError(a.t, err)
}

// past makes the partition of a day some days ago, with rows, and returns its name.
func (a *aged) past(daysAgo, rows int) string {
	a.t.Helper()
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -daysAgo)
	name := "diehard_outbox_p" + day.Format("20060102")
	a.exec(fmt.Sprintf("CREATE TABLE %s PARTITION OF outbox FOR VALUES FROM ('%s') TO ('%s')",
		name, day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339)))
	a.exec(`INSERT INTO outbox (event_type, event_context, published_at)
		SELECT 'old', '{}', $1::timestamptz + '1 hour' FROM generate_series(1, $2)`, day, rows)
	return name
}

// confirm moves the slot to the present end of the WAL, as the streamer does
// when everything is durable.
func (a *aged) confirm() {
	a.t.Helper()
	a.exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", a.Slot)
}

// step takes one step and returns the state of a partition.
func (a *aged) step(partition string) string {
	a.t.Helper()
	_, err := a.maintainer.Step(a.t.Context())
	require.NoError(a.t, err)
	return a.state(partition)
}

func (a *aged) state(partition string) string {
	a.t.Helper()
	var state string
	require.NoError(a.t, a.Pool.QueryRow(a.t.Context(), `
		SELECT coalesce((SELECT state FROM diehard_partitions WHERE partition = $1),
		                (SELECT state FROM diehard_retired WHERE partition = $1), 'missing')`, partition).Scan(&state))
	return state
}

func TestPartitionsGoWhenOldAndDelivered(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	old, young := a.past(9, 10), a.past(7, 10)
	assert.Equal(t, "expired", a.step(old))
	assert.Equal(t, "expired", a.step(old), "its rows are not delivered")
	a.confirm()
	assert.Equal(t, "detached", a.step(old))
	assert.Equal(t, "detached", a.step(old), "the end of the WAL at the detaching is not confirmed")
	a.confirm()
	assert.Equal(t, "dropped", a.step(old))
	assert.Equal(t, "attached", a.state(young), "its day ended less than a week ago")

	var exists bool
	require.NoError(t, a.Pool.QueryRow(t.Context(), "SELECT to_regclass($1) IS NOT NULL", old).Scan(&exists))
	assert.False(t, exists)
	more, err := a.maintainer.Step(t.Context())
	require.NoError(t, err)
	assert.False(t, more)
}

func TestZeroKeepsEverything(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	a.maintainer.Retention = 0
	old := a.past(400, 1)
	a.confirm()
	assert.Equal(t, "attached", a.step(old))
}

func TestNothingGoesWithoutASlot(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	old := a.past(9, 1)
	a.confirm()
	assert.Equal(t, "expired", a.step(old))
	a.exec("SELECT pg_drop_replication_slot($1)", a.Slot)
	assert.Equal(t, "expired", a.step(old), "the slot is lost: what was delivered is unknown")
	a.exec("DELETE FROM diehard_slot")
	assert.Equal(t, "expired", a.step(old), "no streamer ever ran")
}

func TestRowsOlderThanTheSlotStay(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	before, partly, after := a.past(12, 5), a.past(11, 5), a.past(10, 5)
	a.exec("UPDATE diehard_slot SET delivered_since = date_trunc('day', now() - '11 days'::interval, 'UTC') + '2 hours'")
	for range 8 {
		a.confirm()
		a.step(after)
	}
	assert.Equal(t, "attached", a.state(before))
	assert.Equal(t, "attached", a.state(partly), "its rows were committed an hour before the slot was made")
	assert.Equal(t, "dropped", a.state(after))

	a.exec("UPDATE diehard_slot SET delivered_since = '-infinity'")
	for range 8 {
		a.confirm()
		a.step(before)
	}
	assert.Equal(t, "dropped", a.state(before), "after a replay of the table")
	assert.Equal(t, "dropped", a.state(partly))
}

// Rows of days without a partition are retired from where they lie, and hinder no new partition.
func TestRowsOfTheDefaultPartitionAreRetired(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	drop := func(name string) { a.exec("DROP TABLE " + name) }
	today := "diehard_outbox_p" + time.Now().UTC().Format("20060102")
	drop(today)
	a.exec(`INSERT INTO outbox (event_type, event_context, published_at)
		SELECT 't', '{}', now() - '9 days'::interval FROM generate_series(1, 5)`)
	_, err := a.maintainer.Step(t.Context())
	require.NoError(t, err)
	var old, partition string
	require.NoError(t, a.Pool.QueryRow(t.Context(), "SELECT partition FROM diehard_partitions WHERE state = 'detached'").Scan(&old))
	require.NoError(t, a.Pool.QueryRow(t.Context(), `INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')
		RETURNING tableoid::regclass::text`).Scan(&partition))
	assert.Equal(t, today, partition)
	assert.Equal(t, "detached", a.step(old), "its rows are not delivered")
	a.confirm()
	assert.Equal(t, "dropped", a.step(old))

	drop(today)
	a.exec("INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')")
	_, err = a.maintainer.Step(t.Context())
	require.NoError(t, err)
	a.confirm()
	require.NoError(t, a.Pool.QueryRow(t.Context(), "SELECT partition FROM diehard_partitions WHERE state = 'detached'").Scan(&old))
	assert.Equal(t, "detached", a.step(old), "its rows are of today")
}

// A lock that a long transaction holds is not waited for: producers would wait behind us.
func TestNewPartitionsDoNotWaitForLocks(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	a.exec("DROP TABLE diehard_outbox_p" + time.Now().UTC().AddDate(0, 0, 7).Format("20060102"))
	tx, err := a.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), "SELECT FROM diehard_outbox_default")
	require.NoError(t, err)
	more, err := a.maintainer.Step(t.Context())
	require.NoError(t, err)
	assert.True(t, more, "it is tried again soon")
	require.NoError(t, tx.Rollback(t.Context()))
	more, err = a.maintainer.Step(t.Context())
	require.NoError(t, err)
	assert.False(t, more)
}

// Row level security hides rows that were not delivered.
func TestHiddenRowsAreNotRetired(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	old := a.past(11, 5)
	a.exec("UPDATE diehard_slot SET delivered_since = now() - '1 day'::interval")
	role := a.Slot + "_owner"
	a.exec("CREATE ROLE " + role)
	t.Cleanup(func() {
		_, err := a.Pool.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+role+"; DROP ROLE "+role)
		assert.NoError(t, err)
	})
	a.exec("GRANT ALL ON SCHEMA public TO " + role)
	a.exec("GRANT ALL ON ALL TABLES IN SCHEMA public TO " + role)
	a.exec("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO " + role)
	a.exec("ALTER FUNCTION outbox_retire_partitions OWNER TO " + role)
	a.exec("ALTER TABLE " + old + " ENABLE ROW LEVEL SECURITY")
	a.confirm()
	_, err := a.maintainer.Step(t.Context())
	require.ErrorContains(t, err, "row-level security")
	assert.Equal(t, "attached", a.state(old))
}

// The streamer's own role has what it needs, and no more.
func TestTheStreamersRoleMayRetire(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	old := a.past(9, 3)
	a.confirm()
	role := a.Slot + "_maintainer"
	a.exec("CREATE ROLE " + role + " LOGIN PASSWORD 'secret' IN ROLE diehard_streamer")
	t.Cleanup(func() {
		_, err := a.Pool.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+role)
		assert.NoError(t, err)
	})
	pool, err := postgres.NewPool(t.Context(), postgres.Config{URL: testenv.AsUser(t, a.PostgresURL, role, "secret")}, "test")
	require.NoError(t, err)
	defer pool.Close()
	a.maintainer.Postgres = pool
	for range 3 {
		a.step(old)
		a.confirm()
	}
	assert.Equal(t, "dropped", a.state(old))
	_, err = pool.Exec(t.Context(), "DROP TABLE diehard_outbox_default")
	assert.Error(t, err)
}

// A transaction may write to the partition of the day it began on, however long
// that is ago.
func TestATransactionAsOldAsThePartition(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	old := a.past(9, 1)
	a.step(old)
	a.confirm()

	const insert = `INSERT INTO outbox (event_type, event_context, published_at)
		VALUES ('late', '{}', now() - '9 days'::interval) RETURNING tableoid::regclass::text`
	tx, err := a.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	var partition string
	require.NoError(t, tx.QueryRow(t.Context(), insert).Scan(&partition))
	require.Equal(t, old, partition)
	assert.Equal(t, "expired", a.step(old), "the transaction holds the partition")

	require.NoError(t, tx.Commit(t.Context()))
	assert.Equal(t, "detached", a.step(old))
	assert.Equal(t, "detached", a.step(old), "the late row is not confirmed")
	require.NoError(t, a.Pool.QueryRow(t.Context(), insert).Scan(&partition))
	assert.Equal(t, "diehard_outbox_default", partition, "a detached partition gets no more rows")
	a.confirm()
	assert.Equal(t, "dropped", a.step(old))
}

func TestProducersGoOnAtFullSpeed(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	var olds []string
	for day := range 5 {
		olds = append(olds, a.past(9+day, 20_000))
	}
	load := produce(t, a.Pool)
	for _, old := range olds {
		await.True(t, func() bool {
			a.confirm()
			return a.step(old) == "dropped"
		}, "%s stays", old)
	}
	rows, slowest := load.stop()
	t.Logf("%d inserts, the slowest took %s", rows, slowest)
	assert.Greater(t, rows, int64(500))
	assert.Less(t, slowest, 10*time.Second, "50 ms for each lock, and what else the machine is doing")

	var stored, dead int64
	require.NoError(t, a.Pool.QueryRow(t.Context(), "SELECT count(*) FROM outbox WHERE event_type = 'produced'").Scan(&stored))
	assert.Equal(t, rows, stored)
	a.flushStatistics()
	require.NoError(t, a.Pool.QueryRow(t.Context(),
		"SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE relname LIKE 'diehard_outbox_p%'").Scan(&dead))
	assert.Zero(t, dead)
}

// flushStatistics makes PostgreSQL 15 and newer count what this session did; 14
// does so within half a second by itself.
func (a *aged) flushStatistics() {
	a.t.Helper()
	var can bool
	require.NoError(a.t, a.Pool.QueryRow(a.t.Context(), "SELECT to_regproc('pg_stat_force_next_flush') IS NOT NULL").Scan(&can))
	if can {
		a.exec("SELECT pg_stat_force_next_flush()")
	}
}

// producers publish events, one per transaction, as fast as they can.
type producers struct {
	t       *testing.T
	ended   atomic.Bool
	group   sync.WaitGroup
	rows    atomic.Int64
	slowest atomic.Int64
}

func produce(t *testing.T, pool *pgxpool.Pool) *producers {
	t.Helper()
	p := &producers{t: t}
	for range 4 {
		p.group.Go(func() {
			for !p.ended.Load() {
				began := time.Now()
				_, err := pool.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES ('produced', '{}')")
				if !assert.NoError(t, err) {
					return
				}
				p.rows.Add(1)
				if took := int64(time.Since(began)); took > p.slowest.Load() {
					p.slowest.Store(took)
				}
			}
		})
	}
	return p
}

func (p *producers) stop() (rows int64, slowest time.Duration) {
	p.t.Helper()
	p.ended.Store(true)
	p.group.Wait()
	return p.rows.Load(), time.Duration(p.slowest.Load())
}

func TestOldIdempotencyKeysAreDeleted(t *testing.T) {
	t.Parallel()
	a := newAged(t)
	a.maintainer.Retention = 0 // also where nothing is retired
	for _, key := range []string{"old", "new"} {
		a.exec("SELECT publish_event('t', '{}', idempotency_key => $1)", key)
	}
	keys := func() (n int) {
		require.NoError(t, a.Pool.QueryRow(t.Context(), "SELECT count(*) FROM diehard_published_keys").Scan(&n))
		return n
	}
	a.exec("UPDATE diehard_published_keys SET created_at = now() - interval '2 days' WHERE ctid = (SELECT min(ctid) FROM diehard_published_keys)")
	require.Equal(t, 2, keys())
	_, err := a.maintainer.Step(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 1, keys())
}
