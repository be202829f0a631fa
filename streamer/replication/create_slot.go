package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pglogrepl"

	"diehard/shared/postgres"
)

// CreateSlot makes the slot; on PostgreSQL 17 and newer one that follows a
// failover. It waits for the write transactions that are running. A slot that
// another streamer made in the meantime is fine.
//
// PostgreSQL creates slots outside of transactions. So diehard_intent says before that the
// slot is being created, and afterwards where it began: a slot without that was not made here,
// and anything may have read it. One whose creation was interrupted has delivered nothing, and
// is created once more.
func (c *Control) CreateSlot(ctx context.Context) error {
	unlock, err := c.lockCreation(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := c.ReadIntent(ctx)
	if err != nil {
		return err
	}
	slot, err := c.Slot(ctx)
	if err == nil {
		err = c.refuseForeign(ctx, slot)
	}
	switch {
	case err == nil && !rec.BeingCreated():
		return c.recordSlot(ctx, c.readsMessages())
	case err == nil:
		err = c.dropSlot(ctx)
	case errors.Is(err, ErrNoSlot):
		err = nil
	}
	if err != nil {
		return err
	}
	return c.createSlot(ctx)
}

func (c *Control) createSlot(ctx context.Context) error {
	call := "pg_create_logical_replication_slot($1, 'pgoutput')"
	version, err := c.ServerVersion(ctx)
	if err != nil {
		return err
	}
	if version >= 170000 {
		call = "pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)"
	}
	if err := c.markCreating(ctx); err != nil {
		return err
	}
	var begin pglogrepl.LSN
	if err := c.conn.QueryRow(ctx, "SELECT lsn FROM pg_catalog."+call, c.slot).Scan(&begin); err != nil {
		err = classify(fmt.Errorf("create slot %s: %w", c.slot, err))
		if postgres.IsCode(err, pgerrcode.DuplicateObject) { // another program was faster: it is not ours
			err = errors.Join(err, c.deleteIntent(ctx))
		}
		return err
	}
	if err := c.replaceRecord(ctx); err != nil {
		return err
	}
	if _, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_intent_created($1::text, $2::pg_lsn)`), c.slot, begin); err != nil {
		return classify(fmt.Errorf("record slot %s in diehard_intent: %w", c.slot, err))
	}
	return nil
}

// markCreating makes the record say that the slot is being created.
func (c *Control) markCreating(ctx context.Context) error {
	_, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_intent_creating($1::text, system_identifier::text,
			('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::bigint)
		FROM pg_catalog.pg_control_system()`), c.slot) // the name of a WAL file begins with its timeline
	if err != nil {
		return classify(fmt.Errorf("record slot %s in diehard_intent (has `streamer migrate up` run?): %w", c.slot, err))
	}
	return nil
}

// creationKey is the advisory lock of those that create slot $1.
const creationKey = `pg_catalog.hashtextextended('diehard_slot ' || $1::text, 0)`

// lockCreation waits until no other session creates the slot. The lock has no transaction, for
// which the creation would wait.
func (c *Control) lockCreation(ctx context.Context) (unlock func(), err error) {
	var ours bool
	err = c.conn.QueryRow(ctx, `SELECT pg_catalog.pg_try_advisory_lock(`+creationKey+`)`, c.slot).Scan(&ours)
	if err == nil && !ours {
		if err = c.sayWhoCreates(ctx); err == nil {
			_, err = c.conn.Exec(ctx, `SELECT pg_catalog.pg_advisory_lock(`+creationKey+`)`, c.slot)
		}
	}
	if err != nil {
		return nil, classify(fmt.Errorf("lock the creation of slot %s: %w", c.slot, err))
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = c.conn.Exec(ctx, `SELECT pg_catalog.pg_advisory_unlock(`+creationKey+`)`, c.slot) // a lost session has no lock
	}, nil
}

func (c *Control) sayWhoCreates(ctx context.Context) error {
	if c.Waits == nil {
		return nil
	}
	who := "another session"
	err := c.conn.QueryRow(ctx, `SELECT coalesce(min(concat('process ', l.pid, ' (', a.application_name, ')')), $2)
		FROM pg_catalog.pg_locks l, pg_catalog.pg_stat_get_activity(l.pid) a
		WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
		  AND (l.classid::bigint << 32 | l.objid::bigint) = `+creationKey, c.slot, who).Scan(&who)
	if err == nil {
		c.Waits("slot " + c.slot + ", which is being created by " + who)
	}
	return err
}
