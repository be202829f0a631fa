package crash_test

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// foreignReader moves the slot between two holders, as another tool would. What it read is
// known: events of the outbox must come back by a replay, the others may be gone.
func (x *chaos) foreignReader() bool {
	to := x.w.network.postgres
	if !to.busy.TryLock() {
		return false
	}
	defer to.busy.Unlock()
	if !x.w.postgresBusy.TryLock() {
		return false
	}
	defer x.w.postgresBusy.Unlock()
	to.proxies.refuse(true)
	defer to.proxies.refuse(false)
	pause(x.ctx, between(x.rng, 300*time.Millisecond, 1500*time.Millisecond)) // events to be read
	all, byReading := x.rng.IntN(2) == 0, x.rng.IntN(2) == 0
	changes := 1 + x.rng.IntN(3000)
	limit := &changes
	if all {
		limit = nil
	}
	u := x.w.upheavals
	u.with(func() { u.moved = true })
	beyond, err := x.w.moveSlot(x.ctx, limit, byReading)
	u.with(func() {
		u.moved = beyond
		if beyond {
			u.tally.foreign++
		}
	})
	if err != nil {
		x.w.problem("foreign reader: %v", err)
	}
	if !beyond {
		return false
	}
	x.w.did("foreign reader", false)
	if x.rng.IntN(2) == 0 {
		x.killHolder()
	}
	return true
}

// moveSlot reports whether the slot stands beyond what the streamer has confirmed then.
func (w *environment) moveSlot(ctx context.Context, changes *int, byReading bool) (beyond bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return false, err
	}
	defer conn.Close(ctx)
	if err := awaitInactive(ctx, conn, w.slot()); err != nil {
		return false, err
	}
	var ids []uuid.UUID
	if byReading {
		ids, _, err = w.take(ctx, conn, "pg_logical_slot_get_binary_changes", w.slot(), nil, changes)
	} else {
		var last string
		ids, last, err = w.take(ctx, conn, "pg_logical_slot_peek_binary_changes", w.slot(), nil, changes)
		if err == nil && last != "" {
			_, err = conn.Exec(ctx, "SELECT pg_replication_slot_advance($1, $2::pg_lsn)", w.slot(), last)
		}
	}
	if err != nil {
		return false, err
	}
	// A crash would set the slot back to where it was, and nothing had happened.
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return false, err
	}
	err = conn.QueryRow(ctx, `SELECT s.confirmed_flush_lsn > i.confirm_lsn
		FROM pg_replication_slots AS s JOIN diehard_intent AS i ON i.slot_name = s.slot_name::text WHERE s.slot_name = $1`, w.slot()).Scan(&beyond)
	if beyond {
		w.upheavals.excuse(ids)
	}
	return beyond, err
}

func awaitInactive(ctx context.Context, conn *pgx.Conn, slot string) error {
	for {
		var active bool
		if err := conn.QueryRow(ctx, "SELECT active FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&active); err != nil {
			return err
		}
		if !active {
			return nil
		}
		if !pause(ctx, 20*time.Millisecond) {
			return errors.New("the slot stays in use")
		}
	}
}
