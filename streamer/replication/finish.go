package replication

import (
	"context"
	"fmt"

	"github.com/jackc/pglogrepl"

	"diehard/shared/postgres"
)

const (
	// finishBacklog is the WAL behind the slot that FinishSlot looks through.
	finishBacklog = 256 << 20
	// finishAllowance is the WAL, in bytes, that may be written while FinishSlot records.
	finishAllowance = 1 << 20
)

// FinishSlot confirms the end of the WAL for a slot that has nothing to deliver any more.
// A streamer never does: each record of what it confirms is WAL itself, and pg_upgrade
// refuses a slot that has not read all of it.
//
// Errors: ErrSlotActive; failure.Fatal when something waits in the slot.
func (c *Control) FinishSlot(ctx context.Context) (Slot, error) {
	slot, err := c.Preflight(ctx, true)
	switch {
	case err != nil:
		return Slot{}, err
	case slot.Active:
		return Slot{}, fmt.Errorf("%w: stop it first", ErrSlotActive)
	}
	rec, err := c.ReadIntent(ctx)
	if err != nil {
		return Slot{}, err
	}
	// First the record, then the slot: one that stands beyond its record was read by something else.
	if rec.Epoch != 0 {
		_, err = c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_intent_confirm($1::text, $2::bigint, pg_catalog.pg_current_wal_insert_lsn() + $3::bigint::numeric)`),
			c.slot, rec.Epoch, finishAllowance)
		if err != nil {
			return Slot{}, classify(fmt.Errorf("write diehard_intent: %w", err))
		}
	}
	// What is committed from here on stays in the slot, and the record's own WAL does not.
	var end pglogrepl.LSN
	if err := c.conn.QueryRow(ctx, `SELECT pg_catalog.pg_current_wal_flush_lsn()`).Scan(&end); err != nil {
		return Slot{}, classify(fmt.Errorf("read the end of the WAL: %w", err))
	}
	if err := c.refuseWaiting(ctx, slot, end); err != nil {
		return Slot{}, err
	}
	if _, err := c.conn.Exec(ctx, `SELECT pg_catalog.pg_replication_slot_advance($1, $2)`, c.slot, end); err != nil {
		return Slot{}, classify(fmt.Errorf("advance slot %s: %w", c.slot, postgres.Redact(err)))
	}
	return c.Slot(ctx)
}

// refuseWaiting refuses a slot that would send an event of before end.
func (c *Control) refuseWaiting(ctx context.Context, slot Slot, end pglogrepl.LSN) error {
	if behind := uint64(end - min(end, slot.ConfirmedFlush)); behind > finishBacklog {
		return refuse("slot %s is %d MB behind: start the streamer until it has delivered them", slot.Name, behind>>20)
	}
	messages, err := c.WithMessages(ctx)
	if err != nil {
		return err
	}
	options := []string{"proto_version", "1", "publication_names", quoteIdent(c.publication)}
	if messages {
		options = append(options, "messages", "true")
	}
	if c.from.LocalOnly {
		options = append(options, "origin", "none")
	}
	var at *pglogrepl.LSN
	// Inserts, and messages with our prefix, which begins behind type, flags and position; the
	// rest is the frame of transactions, and other programs' messages.
	err = c.conn.QueryRow(ctx, `SELECT min(lsn) FROM pg_catalog.pg_logical_slot_peek_binary_changes($1, NULL, NULL, VARIADIC $2::text[]) AS c
		WHERE get_byte(c.data, 0) = ascii('I')
		   OR get_byte(c.data, 0) = ascii('M') AND substring(c.data FROM 11 FOR 14) = convert_to('diehard.event', 'UTF8') || '\x00'::bytea`, c.slot, options).Scan(&at)
	if err != nil {
		return classify(fmt.Errorf("look into slot %s: %w", c.slot, err))
	}
	if at != nil {
		return refuse("events wait in slot %s, the first at %s: start the streamer until it has delivered them", slot.Name, *at)
	}
	return nil
}
