package replication

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// What Preflight refuses is tested with the whole streamer, in package e2e.

func control(t *testing.T, env *testenv.Env) *Control {
	t.Helper()
	c, err := OpenControl(t.Context(), env.PostgresURL, "tester", Origin{Slot: env.Slot, Publication: env.Publication})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close(t.Context()) })
	return c
}

func execute(t *testing.T, env *testenv.Env, sql string, args ...any) {
	t.Helper()
	_, err := env.Pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

// stream starts a session on the slot.
func stream(t *testing.T, env *testenv.Env, name string) *Conn {
	t.Helper()
	conn, err := Connect(t.Context(), env.PostgresURL, name, await.Limit, nil)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	require.NoError(t, conn.Start(t.Context(), env.Slot, env.Publication, Wanted{}, 0))
	return conn
}

func TestTheLifeOfASlot(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	c := control(t, env)
	_, err := c.Slot(t.Context())
	require.ErrorIs(t, err, ErrNoSlot)
	require.ErrorIs(t, c.DropSlot(t.Context()), ErrNoSlot)

	_, err = c.Preflight(t.Context(), false)
	require.ErrorIs(t, err, ErrNoSlot)
	slot, err := c.EnsureSlot(t.Context())
	require.NoError(t, err, "the first start makes it")
	assert.Equal(t, env.Slot, slot.Name)
	assert.Equal(t, "pgoutput", slot.Plugin)
	assert.False(t, slot.Active)
	assert.NotZero(t, slot.ConfirmedFlush)
	assert.NotZero(t, slot.RestartLSN)
	again, err := c.Preflight(t.Context(), true)
	require.NoError(t, err)
	assert.Equal(t, [2]pglogrepl.LSN{slot.RestartLSN, slot.ConfirmedFlush}, [2]pglogrepl.LSN{again.RestartLSN, again.ConfirmedFlush})
	require.NoError(t, c.CreateSlot(t.Context()), "another streamer was faster: fine")

	_, err = c.ReplaceSlot(t.Context())
	require.ErrorContains(t, err, "drop it first")
	assert.Equal(t, failure.Fatal, failure.Of(err))

	conn := stream(t, env, "holder")
	require.ErrorIs(t, c.DropSlot(t.Context()), ErrSlotActive)
	slot, err = c.Slot(t.Context())
	require.NoError(t, err)
	assert.True(t, slot.Active)
	second, err := Connect(t.Context(), env.PostgresURL, "second", await.Limit, nil)
	require.NoError(t, err)
	defer second.Close()
	require.ErrorIs(t, second.Start(t.Context(), env.Slot, env.Publication, Wanted{}, 0), ErrSlotActive)
	conn.Close()
	await.True(t, func() bool { return c.DropSlot(t.Context()) == nil }, "the slot is free")

	_, err = c.Preflight(t.Context(), true)
	require.ErrorContains(t, err, "streamer slot create")
	slot, err = c.ReplaceSlot(t.Context())
	require.NoError(t, err)
	assert.NotZero(t, slot.ConfirmedFlush)
	_, err = c.Preflight(t.Context(), true)
	require.NoError(t, err)
}

// A slot that was dropped holds retention up: what it had not delivered is in the outbox alone.
func TestADroppedSlotIsRememberedUntilItIsGivenUp(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	c, err := OpenControl(t.Context(), env.PostgresURL, "tester", Origin{Slot: env.Slot, Publication: env.Publication, Messages: true})
	require.NoError(t, err)
	defer c.Close(t.Context())
	execute(t, env, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot+"_other")
	execute(t, env, "INSERT INTO diehard_slot (slot_name, delivered_since) VALUES ($1, '-infinity')", env.Slot+"_other")
	is := func(condition string) (holds bool) {
		t.Helper()
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT "+condition).Scan(&holds))
		return holds
	}
	of := func(condition string) bool {
		t.Helper()
		return is("EXISTS (SELECT FROM diehard_slot WHERE slot_name = '" + env.Slot + "' AND " + condition + ")")
	}
	first, err := c.EnsureSlot(t.Context())
	require.NoError(t, err)
	assert.True(t, of("messages AND messages_from = '"+first.ConfirmedFlush.String()+"'"), "from its beginning")
	require.True(t, is("outbox_confirmed() IS NOT NULL"))

	require.NoError(t, c.DropSlot(t.Context()))
	assert.True(t, is("outbox_confirmed() IS NULL"), "retention waits")
	assert.True(t, of("NOT messages"), "a message would be lost")
	assert.True(t, of("delivered_since = 'infinity'"), "whichever client creates the slot")
	for _, written := range []bool{false, true} {
		_, err = c.Preflight(t.Context(), written)
		require.ErrorContains(t, err, "streamer slot create")
		assert.Equal(t, failure.Fatal, failure.Of(err))
	}

	execute(t, env, "DROP PUBLICATION "+env.Publication)
	execute(t, env, "CREATE PUBLICATION "+env.Publication+" FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)")
	var before time.Time
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT now()").Scan(&before))
	_, err = c.ReplaceSlot(t.Context())
	require.NoError(t, err)
	_, err = c.Preflight(t.Context(), true)
	require.NoError(t, err, "the new publication is the slot's")
	assert.True(t, of("messages AND messages_from = '"+first.ConfirmedFlush.String()+"'"), "what is written is numbered so")
	var since time.Time
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT delivered_since FROM diehard_slot WHERE slot_name = $1", env.Slot).Scan(&since))
	assert.True(t, since.After(before))
	assert.True(t, is("outbox_confirmed() IS NOT NULL"))

	require.NoError(t, c.DropSlot(t.Context()))
	require.NoError(t, c.DeleteRecord(t.Context()))
	assert.True(t, is("outbox_confirmed() IS NOT NULL"), "of the other slot")
}

// Waiting does not make a table.
func TestAMissingTableIsFatal(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	execute(t, env, "DROP TABLE diehard_slot")
	_, err := control(t, env).Preflight(t.Context(), false)
	require.ErrorContains(t, err, "streamer migrate up")
	assert.Equal(t, failure.Fatal, failure.Of(err))
}

// The slot is ours if our process holds it under our name: process ids come around again.
func TestTheOwnerIsTheSessionThatHoldsTheSlot(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	c := control(t, env)
	_, err := c.EnsureSlot(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, c.VerifyOwner(t.Context(), Owner{1, "holder"}), ErrFenced, "the slot is inactive")
	conn := stream(t, env, "holder")
	require.NoError(t, c.VerifyOwner(t.Context(), Owner{conn.PID(), "holder"}))
	require.ErrorIs(t, c.VerifyOwner(t.Context(), Owner{conn.PID(), "namesake"}), ErrFenced)
	require.ErrorIs(t, c.VerifyOwner(t.Context(), Owner{conn.PID() + 1, "holder"}), ErrFenced)

	execute(t, env, "DROP PUBLICATION "+env.Publication)
	require.ErrorIs(t, c.VerifyOwner(t.Context(), Owner{conn.PID(), "holder"}), ErrPublicationChanged)
	execute(t, env, "CREATE PUBLICATION "+env.Publication+" FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)")
	require.ErrorIs(t, c.VerifyOwner(t.Context(), Owner{conn.PID(), "holder"}), ErrPublicationChanged)

	execute(t, env, "SELECT pg_terminate_backend($1::int, 10000)", conn.PID())
	require.ErrorIs(t, c.VerifyOwner(t.Context(), Owner{conn.PID(), "holder"}), ErrFenced)
}

// Rows come through a real session, and confirming them moves the slot.
func TestASessionWithARealServer(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	c := control(t, env)
	slot, err := c.EnsureSlot(t.Context())
	require.NoError(t, err)
	conn := stream(t, env, "holder")
	execute(t, env, "INSERT INTO outbox (event_type, event_context) VALUES ('a', '{}')")

	kinds := ""
	for !strings.HasSuffix(kinds, "IC") {
		m, err := conn.Receive(time.Now().Add(await.Limit))
		require.NoError(t, err)
		if m.Kind == Data {
			kinds += string(m.Data[:1])
		}
	}
	// PostgreSQL 14 sends the transactions without published rows too.
	assert.Equal(t, "BRRIC", strings.ReplaceAll(kinds, "BC", ""), "the root and its partition are announced")

	require.NoError(t, conn.Confirm(slot.ConfirmedFlush, true, await.Limit))
	var end pglogrepl.LSN
	for end == 0 { // the answer that was asked for
		m, err := conn.Receive(time.Now().Add(await.Limit))
		require.NoError(t, err)
		if m.Kind == Keepalive {
			end = m.WALEnd
		}
	}
	require.NoError(t, conn.Confirm(end, false, await.Limit))
	require.NoError(t, conn.Finish(time.Now().Add(await.Limit)))
	conn.Close()
	slot, err = c.Slot(t.Context())
	require.NoError(t, err)
	assert.Equal(t, end, slot.ConfirmedFlush, "the last word was read before the session ended")
}

func TestIdentifyAndHistory(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	conn, err := Connect(t.Context(), env.PostgresURL, "tester", await.Limit, nil)
	require.NoError(t, err)
	defer conn.Close()
	sys, err := conn.Identify(t.Context())
	require.NoError(t, err)
	var system string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT system_identifier::text FROM pg_control_system()").Scan(&system))
	assert.Equal(t, system, sys.SystemID)
	assert.NotZero(t, sys.XLogPos)

	h, err := conn.History(t.Context(), sys.Timeline)
	require.NoError(t, err)
	end, err := control(t, env).WALEnd(t.Context())
	require.NoError(t, err)
	assert.GreaterOrEqual(t, end, sys.XLogPos)
	for _, w := range []Written{{}, {LSN: end}, {LSN: end, Timeline: uint32(sys.Timeline)}} {
		require.NoError(t, h.Check(w, end))
	}
	err = h.Check(Written{LSN: end + 1, Timeline: uint32(sys.Timeline)}, end)
	require.ErrorContains(t, err, "restored from a backup")
	assert.Equal(t, failure.Fatal, failure.Of(err))
}

func TestAHistoryKnowsWhereItsTimelinesWereLeft(t *testing.T) {
	t.Parallel()
	forks, err := parseHistory("1\t0/3000000\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore 2026\n")
	require.NoError(t, err)
	h := History{Timeline: 3, forks: forks}
	const end = 0x9000000
	require.NoError(t, h.Check(Written{LSN: 0x2FFFFFF, Timeline: 1}, end))
	require.NoError(t, h.Check(Written{LSN: 0x4FFFFFF, Timeline: 2}, end))
	require.NoError(t, h.Check(Written{LSN: 0x5000000, Timeline: 3}, end))
	require.NoError(t, h.Check(Written{LSN: 0x8000000, Timeline: 3}, end))
	for _, w := range []Written{{LSN: 0x3000000, Timeline: 1}, {LSN: 0x5000000, Timeline: 2}, {LSN: 0x2FFFFFF, Timeline: 2}, {LSN: 0x4FFFFFF, Timeline: 3}, {LSN: 1, Timeline: 4}} {
		err := h.Check(w, end)
		require.ErrorContains(t, err, "lost in a failover")
		assert.Equal(t, failure.Fatal, failure.Of(err))
	}
	_, err = parseHistory("1\tnonsense\n")
	require.Error(t, err)
}

func TestASlotCopyIsOfThisSession(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	c := control(t, env)
	_, err := c.EnsureSlot(t.Context())
	require.NoError(t, err)
	conn, err := Connect(t.Context(), env.PostgresURL, "tester", await.Limit, nil)
	require.NoError(t, err)
	defer conn.Close()
	err = conn.CopySlot(t.Context(), "no_such_slot", env.Slot+"_copy")
	require.ErrorContains(t, err, "slot no_such_slot does not exist any more")
	assert.Equal(t, failure.Fatal, failure.Of(err))
	require.NoError(t, conn.CopySlot(t.Context(), env.Slot, env.Slot+"_copy"))
	count := func() (n int) {
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", env.Slot+"_copy").Scan(&n))
		return n
	}
	assert.Equal(t, 1, count())
	conn.Close()
	await.True(t, func() bool { return count() == 0 }, "the sessions are gone")
}

// A record that says "being created" is no leave to drop what another database or program has under that name.
func TestASlotOfAnotherDatabaseIsNotDropped(t *testing.T) {
	t.Parallel()
	env, other := testenv.New(t), testenv.New(t)
	execute(t, other, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", other.Slot)
	execute(t, env, "SELECT pg_create_logical_replication_slot($1, 'test_decoding')", env.Slot)
	for slot, message := range map[string]string{other.Slot: "belongs to database", env.Slot: `uses "test_decoding"`} {
		c, err := OpenControl(t.Context(), env.PostgresURL, "tester", Origin{Slot: slot, Publication: env.Publication})
		require.NoError(t, err)
		t.Cleanup(func() { c.Close(context.WithoutCancel(t.Context())) })
		require.NoError(t, c.markCreating(t.Context()))
		before, err := c.Slot(t.Context())
		require.NoError(t, err)
		for _, attempt := range []func(context.Context) error{
			c.CreateSlot,
			func(ctx context.Context) error { _, err := c.EnsureSlot(ctx); return err },
		} {
			err := attempt(t.Context())
			require.ErrorContains(t, err, message)
			assert.Equal(t, failure.Fatal, failure.Of(err))
		}
		after, err := c.Slot(t.Context())
		require.NoError(t, err)
		assert.Equal(t, before.RestartLSN, after.RestartLSN)
		assert.Equal(t, before.ConfirmedFlush, after.ConfirmedFlush)
	}
}

// A slot whose creation was interrupted is our own and has delivered nothing: it is created
// once more, by whichever streamer comes first, and nothing about it is open.
func TestASlotWhoseCreationWasInterruptedIsCreatedOnceMore(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	c, other := control(t, env), control(t, env)
	require.NoError(t, c.markCreating(t.Context()))
	execute(t, env, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
	before, err := c.Slot(t.Context())
	require.NoError(t, err)
	execute(t, env, "SELECT pg_logical_emit_message(true, 'x', 'y')")
	_, err = c.Preflight(t.Context(), true)
	require.ErrorIs(t, err, ErrNoSlot)
	conn := stream(t, env, "another program")
	_, err = c.EnsureSlot(t.Context())
	require.ErrorIs(t, err, ErrSlotActive)
	_, err = c.ClaimIntent(t.Context(), Owner{PID: conn.PID(), Application: "another program"}, "1", 1)
	require.ErrorIs(t, err, errSlotCreated)
	conn.Close()

	both := make(chan Slot, 2)
	for _, c := range []*Control{c, other} {
		go func() {
			var slot Slot
			assert.Eventually(t, func() bool {
				var err error
				slot, err = c.EnsureSlot(t.Context())
				return err == nil
			}, await.Limit, 20*time.Millisecond)
			both <- slot
		}()
	}
	slot := <-both
	assert.Equal(t, slot.ConfirmedFlush, (<-both).ConfirmedFlush, "it is made once")
	assert.Greater(t, slot.ConfirmedFlush, before.ConfirmedFlush)
	rec, err := c.ReadIntent(t.Context())
	require.NoError(t, err)
	assert.Equal(t, slot.ConfirmedFlush, rec.Confirm)
	assert.Nil(t, rec.UnprovedSince)
}

// A connection from before the migrations may find what a stranger has made since.
func TestTheVersionIsReadOnceAllTablesAreThere(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	c := control(t, env)
	asked := 0
	check := func() error {
		return c.CheckMigrated(t.Context(), func(context.Context, *pgx.Conn) error { asked++; return nil })
	}
	execute(t, env, "ALTER TABLE diehard_intent RENAME TO away")
	require.ErrorContains(t, check(), "does not exist: run `streamer migrate up`")
	execute(t, env, "ALTER TABLE away RENAME TO diehard_intent")
	execute(t, env, "CREATE ROLE "+env.Slot)
	execute(t, env, "ALTER TABLE diehard_outbox_version OWNER TO "+env.Slot)
	require.ErrorContains(t, check(), "belongs to "+env.Slot)
	assert.Zero(t, asked)
	execute(t, env, "ALTER TABLE diehard_outbox_version OWNER TO CURRENT_USER")
	execute(t, env, "DROP ROLE "+env.Slot)
	require.NoError(t, check())
	assert.Equal(t, 1, asked)
}

// What a slot delivers is compared: also what a transaction wrote that began before the slot
// was recorded, and nothing that was committed before it, or that the operator has accepted.
func TestWhatASlotDeliversIsCompared(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	c := control(t, env)
	began := time.Now().Add(-time.Hour)
	const publish = "INSERT INTO outbox (id, event_type, event_context) VALUES (gen_random_uuid(), $1, '{}')"
	compared := func() (types []string) {
		err := c.PublishedSince(t.Context(), Published{Since: began}, func(ids []uuid.UUID) error {
			return env.Pool.QueryRow(t.Context(), "SELECT array_agg(event_type ORDER BY event_type) FROM outbox WHERE id = ANY ($1)", ids).Scan(&types)
		})
		require.NoError(t, err)
		return types
	}
	open, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = open.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = open.Exec(t.Context(), "SELECT now()") // writes later, and has this time then
	require.NoError(t, err)
	execute(t, env, publish, "before")
	_, err = c.EnsureSlot(t.Context())
	require.NoError(t, err)
	_, err = open.Exec(t.Context(), publish, "across")
	require.NoError(t, err)
	require.NoError(t, open.Commit(t.Context()))
	execute(t, env, publish, "behind")
	assert.Equal(t, []string{"across", "behind"}, compared())

	_, err = c.AcceptSlot(t.Context())
	require.NoError(t, err)
	assert.Empty(t, compared())
	execute(t, env, publish, "later")
	assert.Equal(t, []string{"later"}, compared())
	require.NoError(t, c.MissEvents(t.Context()))
	assert.Empty(t, compared())
}
