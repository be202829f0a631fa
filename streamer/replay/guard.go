package replay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"diehard/shared/event"
	"diehard/streamer/replication"
)

// lockClass is the first half of the advisory lock that the one replay of a slot
// holds that may write ("rply" in ASCII); the other half is the slot's hash.
const lockClass = 0x72706c79

// ErrBusy means that another replay of the same slot is running.
var ErrBusy = errors.New("another `streamer replay` of this slot is running: wait until it has ended")

// guard is that of a slot.
type guard struct {
	*replication.AdvisoryLock
	slot   string
	schema event.Schema // of the outbox
}

func openGuard(ctx context.Context, url, slot string, schema event.Schema) (*guard, error) {
	g, err := replication.OpenAdvisoryLock(ctx, url, "diehard-streamer-replay")
	if err != nil {
		return nil, err
	}
	return &guard{AdvisoryLock: g, slot: slot, schema: schema}, nil
}

// lock makes this replay the only one of its slot.
func (g *guard) lock(ctx context.Context) error {
	ours, err := g.Lock(ctx, "$1, pg_catalog.hashtext($2)", int32(lockClass), g.slot)
	if err == nil && !ours {
		return ErrBusy
	}
	return err
}

func (g *guard) confirmed(ctx context.Context) (pglogrepl.LSN, error) {
	return confirmedFlush(ctx, g.Conn, g.slot)
}

const (
	confirmPoll = 50 * time.Millisecond
	// confirmNotice is after how long of waiting the log says so, and again.
	confirmNotice = 10 * time.Second
)

// waitUntilConfirmed waits until the streamer has confirmed everything that has been
// committed so far, and returns a position behind all of that: rows which any
// snapshot taken before shows are delivered then, or lost.
//
// The position is that of a commit of our own. That of WAL which merely exists
// may lie between two records, and a slot would not reach it on an idle server.
func (g *guard) waitUntilConfirmed(ctx context.Context, log *slog.Logger) (pglogrepl.LSN, error) {
	batch := &pgx.Batch{}
	batch.Queue(`SET synchronous_commit = local`)
	batch.Queue(g.schema.SQL(`SELECT {outbox}.diehard_mark_wal()`))
	if err := g.Conn.SendBatch(ctx, batch).Close(); err != nil {
		return 0, fmt.Errorf("mark the WAL: %w", err)
	}
	var end pglogrepl.LSN
	if err := g.Conn.QueryRow(ctx, `SELECT pg_catalog.pg_current_wal_flush_lsn()`).Scan(&end); err != nil {
		return 0, fmt.Errorf("read the end of the WAL: %w", err)
	}
	return end, g.await(ctx, end, log)
}

func (g *guard) await(ctx context.Context, end pglogrepl.LSN, log *slog.Logger) error {
	poll, notice := time.NewTicker(confirmPoll), time.NewTicker(confirmNotice)
	defer poll.Stop()
	defer notice.Stop()
	for {
		confirmed, err := g.confirmed(ctx)
		if err != nil || confirmed >= end {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
		case <-notice.C:
			log.Warn("waiting for the streamer to deliver what is committed; it must be running (`streamer run`)",
				"slot", g.slot, "confirmed_lsn", confirmed.String(), "wanted_lsn", end.String())
		}
	}
}
