package replication

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/failure"
	"diehard/shared/testenv"
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
	conn, err := Connect(t.Context(), env.PostgresURL, name, patience)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	require.NoError(t, conn.Start(t.Context(), env.Slot, env.Publication, false, 0))
	return conn
}

const patience = 30 * time.Second

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
	assert.Equal(t, slot, again)
	require.NoError(t, c.CreateSlot(t.Context()), "another streamer was faster: fine")

	_, err = c.Recreate(t.Context())
	require.ErrorContains(t, err, "drop it first")
	assert.Equal(t, failure.Fatal, failure.Of(err))

	conn := stream(t, env, "holder")
	require.ErrorIs(t, c.DropSlot(t.Context()), ErrSlotActive)
	slot, err = c.Slot(t.Context())
	require.NoError(t, err)
	assert.True(t, slot.Active)
	second, err := Connect(t.Context(), env.PostgresURL, "second", patience)
	require.NoError(t, err)
	defer second.Close()
	require.ErrorIs(t, second.Start(t.Context(), env.Slot, env.Publication, false, 0), ErrSlotActive)
	conn.Close()
	require.Eventually(t, func() bool { return c.DropSlot(t.Context()) == nil }, patience, 20*time.Millisecond)

	_, err = c.Preflight(t.Context(), true)
	require.ErrorContains(t, err, "streamer slot create")
	slot, err = c.Recreate(t.Context())
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
	execute(t, env, "INSERT INTO streamer_slot (slot_name, publication_oid, delivered_since) VALUES ($1, 1, '-infinity')", env.Slot+"_other")
	is := func(condition string) (holds bool) {
		t.Helper()
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT "+condition).Scan(&holds))
		return holds
	}
	of := func(condition string) bool {
		t.Helper()
		return is("EXISTS (SELECT FROM streamer_slot WHERE slot_name = '" + env.Slot + "' AND " + condition + ")")
	}
	first, err := c.EnsureSlot(t.Context())
	require.NoError(t, err)
	assert.True(t, of("messages AND messages_from = '"+first.ConfirmedFlush.String()+"'"), "from its beginning")
	require.True(t, is("outbox_confirmed() IS NOT NULL"))

	require.NoError(t, c.DropSlot(t.Context()))
	assert.True(t, is("outbox_confirmed() IS NULL"), "retention waits")
	assert.True(t, of("NOT messages"), "a message would be lost")
	assert.True(t, of("delivered_since = 'infinity'"), "whoever makes the slot")
	for _, landed := range []bool{false, true} {
		_, err = c.Preflight(t.Context(), landed)
		require.ErrorContains(t, err, "streamer slot create")
		assert.Equal(t, failure.Fatal, failure.Of(err))
	}

	execute(t, env, "DROP PUBLICATION "+env.Publication)
	execute(t, env, "CREATE PUBLICATION "+env.Publication+" FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)")
	var before time.Time
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT now()").Scan(&before))
	_, err = c.Recreate(t.Context())
	require.NoError(t, err)
	_, err = c.Preflight(t.Context(), true)
	require.NoError(t, err, "the new publication is the slot's")
	assert.True(t, of("messages AND messages_from = '"+first.ConfirmedFlush.String()+"'"), "what has landed is numbered so")
	var since time.Time
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT delivered_since FROM streamer_slot WHERE slot_name = $1", env.Slot).Scan(&since))
	assert.True(t, since.After(before))
	assert.True(t, is("outbox_confirmed() IS NOT NULL"))

	require.NoError(t, c.DropSlot(t.Context()))
	require.NoError(t, c.Forget(t.Context()))
	assert.True(t, is("outbox_confirmed() IS NOT NULL"), "of the other slot")
}

// Waiting does not make a table.
func TestAMissingTableIsFatal(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	execute(t, env, "DROP TABLE streamer_slot")
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
	require.ErrorIs(t, c.VerifyOwner(t.Context(), 1, "holder"), ErrFenced, "nobody holds it")
	conn := stream(t, env, "holder")
	require.NoError(t, c.VerifyOwner(t.Context(), conn.PID(), "holder"))
	require.ErrorIs(t, c.VerifyOwner(t.Context(), conn.PID(), "namesake"), ErrFenced)
	require.ErrorIs(t, c.VerifyOwner(t.Context(), conn.PID()+1, "holder"), ErrFenced)

	execute(t, env, "DROP PUBLICATION "+env.Publication)
	err = c.VerifyOwner(t.Context(), conn.PID(), "holder")
	require.ErrorContains(t, err, "dropped, recreated or changed")
	assert.Equal(t, failure.Fatal, failure.Of(err))
	execute(t, env, "CREATE PUBLICATION "+env.Publication+" FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)")
	require.ErrorContains(t, c.VerifyOwner(t.Context(), conn.PID(), "holder"), "dropped, recreated or changed")

	execute(t, env, "SELECT pg_terminate_backend($1::int, 10000)", conn.PID())
	require.ErrorIs(t, c.VerifyOwner(t.Context(), conn.PID(), "holder"), ErrFenced)
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
		m, err := conn.Receive(time.Now().Add(patience))
		require.NoError(t, err)
		if m.Kind == Data {
			kinds += string(m.Data[:1])
		}
	}
	// PostgreSQL 14 sends the transactions without published rows too.
	assert.Equal(t, "BRRIC", strings.ReplaceAll(kinds, "BC", ""), "the root and its partition are announced")

	require.NoError(t, conn.Confirm(slot.ConfirmedFlush, true, patience))
	var end pglogrepl.LSN
	for end == 0 { // the answer that was asked for
		m, err := conn.Receive(time.Now().Add(patience))
		require.NoError(t, err)
		if m.Kind == Keepalive {
			end = m.WALEnd
		}
	}
	require.NoError(t, conn.Confirm(end, false, patience))
	require.NoError(t, conn.Finish(time.Now().Add(patience)))
	conn.Close()
	slot, err = c.Slot(t.Context())
	require.NoError(t, err)
	assert.Equal(t, end, slot.ConfirmedFlush, "the last word was read before the session ended")
}

func TestIdentifyAndHistory(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	conn, err := Connect(t.Context(), env.PostgresURL, "tester", patience)
	require.NoError(t, err)
	defer conn.Close()
	sys, err := conn.Identify(t.Context())
	require.NoError(t, err)
	var system string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT system_identifier::text FROM pg_control_system()").Scan(&system))
	assert.Equal(t, system, sys.SystemID)
	assert.NotZero(t, sys.XLogPos)

	for _, l := range []Landed{{}, {LSN: sys.XLogPos}, {LSN: sys.XLogPos, Timeline: uint32(sys.Timeline)}} {
		_, err := conn.CheckHistory(t.Context(), sys.Timeline, l)
		require.NoError(t, err)
	}
	_, err = conn.CheckHistory(t.Context(), sys.Timeline, Landed{LSN: 1 << 60, Timeline: uint32(sys.Timeline)})
	require.ErrorContains(t, err, "restored from a backup")
	assert.Equal(t, failure.Fatal, failure.Of(err))
	_, err = conn.CheckHistory(t.Context(), sys.Timeline+1, Landed{})
	require.ErrorContains(t, err, "promoted")
	assert.Equal(t, failure.Transient, failure.Of(err))

	// What another streamer has landed since the first look is no sign of a wrong server.
	execute(t, env, "INSERT INTO outbox (event_type, event_context) VALUES ('a', '{}')")
	var text string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT pg_current_wal_flush_lsn()::text").Scan(&text))
	newer, err := pglogrepl.ParseLSN(text)
	require.NoError(t, err)
	require.Greater(t, newer, sys.XLogPos)
	walEnd, err := conn.CheckHistory(t.Context(), sys.Timeline, Landed{LSN: newer, Timeline: uint32(sys.Timeline)})
	require.NoError(t, err)
	assert.GreaterOrEqual(t, walEnd, newer)
}

func TestASlotCopyIsOfThisSession(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	c := control(t, env)
	_, err := c.EnsureSlot(t.Context())
	require.NoError(t, err)
	conn, err := Connect(t.Context(), env.PostgresURL, "tester", patience)
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
	require.Eventually(t, func() bool { return count() == 0 }, patience, 20*time.Millisecond)
}
