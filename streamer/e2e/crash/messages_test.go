package crash_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/event"
)

// Messages leave nothing in the outbox to compare with. The journal knows them, and a
// row beside them shows whether their transaction was committed when its producer
// cannot know. The number of the transaction would not do: after a crash PostgreSQL
// gives those anew of which nothing had reached the disk.
const witnesses = "CREATE TABLE witness (producer int, number bigint)"

// awaitReader waits for a streamer that reads messages: the one that makes the slot
// may be killed before it says that it does, and until then they are refused.
func awaitReader(t *testing.T, w *environment) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.url)
	require.NoError(t, err)
	await.True(t, func() bool {
		var reads bool
		err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM diehard_slot WHERE messages)").Scan(&reads)
		return err == nil && reads
	}, "no streamer reads messages")
	require.NoError(t, conn.Close(t.Context()))
}

// message is next for an event without a table.
func (p *producer) message(t *transaction, f fate) event.Event {
	e := p.next(t, f)
	t.entries[len(t.entries)-1].message = true
	return e
}

// writeMessages writes messages alone, as far as the outbox is concerned.
func (p *producer) writeMessages(ctx context.Context, t *transaction) (outcome, error) {
	return p.commit(ctx, func(tx pgx.Tx) error {
		t.witness = p.number + 1
		if _, err := tx.Exec(ctx, "INSERT INTO witness VALUES ($1, $2)", p.index, t.witness); err != nil {
			return err
		}
		events := make([]event.Event, 1+p.rng.IntN(10))
		for i := range events {
			events[i] = p.message(t, stays)
		}
		return event.PublishMessages(ctx, tx, events...)
	})
}

// writeMixed writes rows and messages in turn, and some of both into a savepoint
// that is rolled back.
func (p *producer) writeMixed(ctx context.Context, t *transaction) (outcome, error) {
	return p.commit(ctx, func(tx pgx.Tx) error {
		for range 1 + p.rng.IntN(4) {
			if err := p.both(ctx, tx, t, stays); err != nil {
				return err
			}
		}
		nested, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		if err := p.both(ctx, nested, t, undone); err != nil {
			return err
		}
		if err := nested.Rollback(ctx); err != nil {
			return err
		}
		return p.both(ctx, tx, t, stays)
	})
}

func (p *producer) both(ctx context.Context, tx pgx.Tx, t *transaction, f fate) error {
	e := p.message(t, f)
	if _, err := tx.Exec(ctx, "SELECT publish_event_message($1, $2, event_id => $3)", e.Type, e.Context, e.ID); err != nil {
		return err
	}
	return event.Publish(ctx, tx, p.next(t, f))
}

// writeMalformed has a message among others that is no event.
func (p *producer) writeMalformed(ctx context.Context, t *transaction) (outcome, error) {
	return p.commit(ctx, func(tx pgx.Tx) error {
		if err := p.both(ctx, tx, t, stays); err != nil {
			return err
		}
		e := p.message(t, stays)
		t.entries[len(t.entries)-1].poison, t.entries[len(t.entries)-1].fleeting = true, false
		content := fmt.Sprintf(`{"v":1,"id":"%s","event_type":"%s","event_date_time":"infinity"}`+"\n%s", e.ID, e.Type, e.Context)
		if _, err := tx.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", event.MessagePrefix, content); err != nil {
			return err
		}
		return p.both(ctx, tx, t, stays)
	})
}
