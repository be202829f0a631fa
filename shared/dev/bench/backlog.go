package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pgerrcode"

	"diehard/shared/postgres"
)

// The event of every benchmark: a context of about 230 bytes, as an audit event has.
const eventContext = `json_build_object('order_id', n, 'customer', md5(n::text), 'total', n %% 10000 / 100.0,
	'currency', 'EUR', 'items', n %% 7 + 1, 'channel', 'web', 'ip', '192.0.2.' || n %% 255,
	'note', 'the quick brown fox jumps over the lazy dog', 'campaign', 'autumn-' || n %% 40)`

const eventType = `(ARRAY['order_created','order_paid','order_shipped','user_logged_in','cart_updated'])[1 + n %% 5]`

// backlog is WAL to drain: one transaction of bulk rows, then single transactions of one row.
type backlog struct {
	bulk, single int
	end          string // LSN before its last row: pg_recvlogical ends at the first message after it
}

func (b backlog) rows() int { return b.bulk + b.single }

// produce writes the backlog behind a new slot called base.
func (b *backlog) produce(ctx context.Context, testbed *testbed) error {
	if _, err := testbed.pool.Exec(ctx, `SELECT pg_create_logical_replication_slot('base_`+testbed.name+`', 'pgoutput')`); err != nil {
		return err
	}
	insert := `INSERT INTO outbox (event_type, environment, event_context) SELECT ` + eventType + `, 'Bench', ` + eventContext
	if b.bulk > 0 {
		if _, err := testbed.pool.Exec(ctx, fmt.Sprintf(insert+` FROM generate_series(1, %d) n`, b.bulk)); err != nil {
			return err
		}
	}
	if b.single > 1 {
		sql := fmt.Sprintf(`DO $$ BEGIN
			SET synchronous_commit = off;
			FOR i IN 1..%d LOOP `+insert+` FROM (VALUES (i)) v(n); COMMIT; END LOOP;
		END $$`, b.single-1)
		if _, err := testbed.pool.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if err := testbed.pool.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&b.end); err != nil {
		return err
	}
	if b.single > 0 {
		if _, err := testbed.pool.Exec(ctx, fmt.Sprintf(insert+` FROM generate_series(%[1]d, %[1]d) n`, b.single)); err != nil {
			return err
		}
	}
	// Autovacuum would take its time from the first contestants.
	for _, sql := range []string{"VACUUM ANALYZE outbox", "CHECKPOINT"} {
		if _, err := testbed.pool.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// copySlot creates a slot of its own on the backlog for a contestant.
func (b *testbed) copySlot(ctx context.Context, name string) error {
	return b.recordedSlot(ctx, name, `SELECT pg_copy_logical_replication_slot('base_`+b.name+`', $1)`)
}

// recordedSlot creates a slot with create, and records it as the streamer does: for a slot without
// a record it waits for the inserts of a predecessor.
func (b *testbed) recordedSlot(ctx context.Context, name, create string) error {
	for _, sql := range []string{
		`SELECT diehard_intent_creating($1::text, system_identifier::text,
			('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint) FROM pg_control_system()`,
		create,
		`SELECT diehard_intent_created($1::text, confirmed_flush_lsn) FROM pg_replication_slots WHERE slot_name = $1`,
	} {
		if _, err := b.pool.Exec(ctx, sql, name); err != nil {
			return err
		}
	}
	return nil
}

// dropSlot also waits for the walsender of a contestant that has ended.
func (b *testbed) dropSlot(ctx context.Context, name string) error {
	for until := time.Now().Add(10 * time.Second); ; sleepFor(ctx, 50*time.Millisecond) {
		_, err := b.pool.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, name)
		if !postgres.IsCode(err, pgerrcode.ObjectInUse) || time.Now().After(until) {
			return err
		}
	}
}

func replaceDatabase(raw, database string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	u.Path = "/" + database
	return u.String()
}
