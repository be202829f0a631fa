package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// What a session is held to at its seams, on real servers; package e2e tests it whole.

func onServers(env *testenv.Env) *Pipeline {
	return New(Config{
		PostgresURL: env.PostgresURL, Origin: replication.Origin{Slot: env.Slot, Publication: env.Publication}, SenderTimeout: time.Minute,
		Tables: sink.Tables{EventLog: "event_log", DeadLetter: "event_dead_letter"}, Limits: roomy,
		FlushInterval: interval, InsertTimeout: time.Minute, DrainTimeout: time.Minute,
	}, env.ClickHouse, slog.New(slog.DiscardHandler), nil)
}

func eventually(t *testing.T, env *testenv.Env, condition string, args ...any) {
	t.Helper()
	await.True(t, func() bool {
		var holds bool
		err := env.Pool.QueryRow(t.Context(), "SELECT "+condition, args...).Scan(&holds)
		return err == nil && holds
	}, "%s", condition)
}

// The look may err: a replica that lags shows nothing. ClickHouse itself then
// takes the rows once, because all attempts at them have one token.
func TestAttemptsAtTheSameRowsAreOneForClickHouse(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	s, err := onServers(env).open(t.Context())
	require.NoError(t, err)
	defer s.close()
	b := batch.New(roomy)
	for i := range byte(3) {
		b.Append(decode.Position{LSN: 1, Seq: uint32(i) + 1}, 0, &decode.Event{ID: [16]byte{i}, Type: []byte("t")})
	}
	w := newWriter(s, &confirmed{kick: make(chan struct{}, 1)}, nil, nil, nil, &beginning{})
	intent, err := w.newIntent(t.Context(), decode.Position{}, b.Last())
	require.NoError(t, err)
	intent.IngestedAt = time.Now().UnixMilli()
	p := &part{b: b, intent: intent}
	queries := make(map[string]bool)
	_, err = w.insertUntilDurable(t.Context(), p, insertion{
		what: "rows", token: p.intent.Token,
		insert: func(ctx context.Context, r sink.InsertRequest) error {
			queries[r.QueryID] = true
			require.NoError(t, w.s.sink.Insert(ctx, &b.Rows, 0, 3, r))
			if len(queries) < 3 {
				return errors.New("the answer was lost")
			}
			return nil
		},
		written: func(context.Context) (bool, error) { return len(queries) == 3, nil },
	})
	require.NoError(t, err)
	assert.Len(t, queries, 3, "each attempt has a query id of its own")
	var rows uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM event_log").Scan(&rows))
	assert.Equal(t, uint64(3), rows)
	rec, err := s.control.ReadIntent(t.Context())
	require.NoError(t, err)
	want := p.intent
	want.Unanswered = true // the first two attempts may still be written
	assert.Equal(t, &want, rec.Intent, "PostgreSQL knows what was written")
}

// The streamer before may confirm between our look at the slot and our taking of it.
// What we acknowledge first must not lie before that, nor may we wait for a commit
// that the server does not send any more.
func TestTheSlotIsReadAgainOnceItIsOurs(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	first, err := onServers(env).open(t.Context())
	require.NoError(t, err)
	looked := first.slot.ConfirmedFlush
	first.close()
	eventually(t, env, "NOT active FROM pg_replication_slots WHERE slot_name = $1", env.Slot)

	lock, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = lock.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = lock.Exec(t.Context(), "LOCK TABLE diehard_slot") // which is read behind the first look
	require.NoError(t, err)
	type opened struct {
		*session
		err error
	}
	done := make(chan opened, 1)
	go func() {
		s, err := onServers(env).open(t.Context())
		done <- opened{s, err}
	}()
	eventually(t, env, "EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'diehard_slot'::regclass)")
	var text string
	_, err = env.Pool.Exec(t.Context(), "SELECT pg_logical_emit_message(true, 'x', 'the WAL goes on')")
	require.NoError(t, err)
	require.NoError(t, env.Pool.QueryRow(t.Context(),
		"SELECT end_lsn::text FROM pg_replication_slot_advance($1, pg_current_wal_flush_lsn())", env.Slot).Scan(&text))
	confirmed, err := pglogrepl.ParseLSN(text)
	require.NoError(t, err)
	require.Greater(t, confirmed, looked)
	require.NoError(t, lock.Rollback(t.Context()))

	second := <-done
	require.NoError(t, second.err)
	defer second.close()
	assert.Equal(t, confirmed, second.slot.ConfirmedFlush)
}

// A streamer that waits for inserts of an older timeline says so in its new record, which has no intent yet.
func TestAWaitForOldInsertsIsRecorded(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	s, err := onServers(env).open(t.Context())
	require.NoError(t, err)
	defer s.close()
	require.Nil(t, s.record.Intent)
	require.Nil(t, s.record.UnprovedSince)
	require.NoError(t, s.noteWait(t.Context()))
	rec, err := s.control.ReadIntent(t.Context())
	require.NoError(t, err)
	assert.Nil(t, rec.Intent)
	assert.Equal(t, s.record.Confirm, rec.Confirm)
	require.NotNil(t, rec.UnprovedSince)
	assert.WithinDuration(t, s.record.WrittenAt, *rec.UnprovedSince, 0)
}
