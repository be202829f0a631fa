package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// readsMessages tells that messages are wanted, and are this shard's to take.
func (c *Control) readsMessages() bool { return c.messages && c.shard.Index <= 1 }

// MessagesFrom returns where in the WAL messages began to be events of this slot; 0 if they never did.
func (c *Control) MessagesFrom(ctx context.Context) (pglogrepl.LSN, error) {
	var text *string
	err := c.conn.QueryRow(ctx, `SELECT messages_from::text FROM public.streamer_slot WHERE slot_name = $1`, c.slot).Scan(&text)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, classify(fmt.Errorf("read streamer_slot (has `streamer migrate up` run?): %w", err))
	}
	return parseLSN(text)
}

// WithMessages tells whether the stream must carry messages: they are wanted, or
// once were. A message takes a number like a row, so that those on their way count
// for ever.
func (c *Control) WithMessages(ctx context.Context) (bool, error) {
	from, err := c.MessagesFrom(ctx)
	return from != 0 || c.readsMessages(), err
}

// NoteMessages notes whether messages are wanted, which opens or closes the door
// for those who publish them, and returns MessagesFrom. When they are wanted for the
// first time they begin at next, before which everything has been delivered already. The
// slot must be ours.
func (c *Control) NoteMessages(ctx context.Context, next pglogrepl.LSN) (pglogrepl.LSN, error) {
	_, err := c.conn.Exec(ctx, `
		UPDATE public.streamer_slot SET messages = $2, messages_from = CASE WHEN $2 THEN coalesce(messages_from, $3::pg_lsn) ELSE messages_from END
		WHERE slot_name = $1 AND messages <> $2`, c.slot, c.readsMessages(), next.String())
	if err != nil {
		return 0, classify(fmt.Errorf("note that messages are read: %w", err))
	}
	return c.MessagesFrom(ctx)
}
