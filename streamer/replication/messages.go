package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// readsMessages reports whether messages are wanted, and are this shard's to take.
func (c *Control) readsMessages() bool { return c.from.Messages && c.from.Shard.Index <= 1 }

// MessagesFrom returns where in the WAL messages began to be events of this slot; 0 if they never did.
func (c *Control) MessagesFrom(ctx context.Context) (pglogrepl.LSN, error) {
	var from pglogrepl.LSN
	err := c.conn.QueryRow(ctx, c.schema.SQL(`SELECT coalesce(messages_from, '0/0') FROM {outbox}.diehard_slot WHERE slot_name = $1`), c.slot).Scan(&from)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, classify(fmt.Errorf("read diehard_slot (has `streamer migrate up` run?): %w", err))
	}
	return from, nil
}

// WithMessages reports whether the stream must carry messages: they are wanted, or
// once were. A message takes a number like a row, so that those on their way count
// for ever.
func (c *Control) WithMessages(ctx context.Context) (bool, error) {
	from, err := c.MessagesFrom(ctx)
	return from != 0 || c.readsMessages(), err
}

// NoteMessages notes whether messages are wanted, which publish_event_message otherwise
// refuses, and returns MessagesFrom. When they are wanted for the
// first time they begin at next, before which everything has been delivered already. The
// slot must be ours.
func (c *Control) NoteMessages(ctx context.Context, next pglogrepl.LSN) (pglogrepl.LSN, error) {
	_, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_slot_messages($1::text, $2::boolean, $3::pg_lsn)`),
		c.slot, c.readsMessages(), next)
	if err != nil {
		return 0, classify(fmt.Errorf("note that messages are read: %w", err))
	}
	return c.MessagesFrom(ctx)
}
