package replay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// lockClass is the first half of the advisory lock that the one replay of a slot
// holds that may write ("rply" in ASCII); the other half is the slot's hash.
const lockClass = 0x72706c79

// ErrBusy means that another replay of the same slot is running.
var ErrBusy = errors.New("another `streamer replay` of this slot is running: wait until it has ended")

// guard is a session of PostgreSQL that holds the lock. It is also the proof
// that the server has not restarted since the session began: what the slot had
// confirmed then, it cannot have forgotten.
type guard struct {
	conn     *pgx.Conn
	slot     string
	systemID string
	timeline uint32
}

func openGuard(ctx context.Context, url, slot string) (*guard, error) {
	conn, err := connect(ctx, url, "diehard-streamer-replay")
	if err != nil {
		return nil, err
	}
	g := &guard{conn: conn, slot: slot}
	// The name of a WAL file begins with its timeline.
	err = conn.QueryRow(ctx, `SELECT system_identifier::text,
			('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::bigint
		FROM pg_catalog.pg_control_system()`).Scan(&g.systemID, &g.timeline)
	if err != nil {
		g.close()
		return nil, fmt.Errorf("identify the server: %w", err)
	}
	return g, nil
}

// close gives the lock back by itself: the server may take a moment to notice the
// end of the session, and the next replay shall not find it busy.
func (g *guard) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = g.conn.Exec(ctx, `SELECT pg_catalog.pg_advisory_unlock_all()`) // a lost session has none
	closeConn(g.conn)
}

// lock makes this replay the only one of its slot.
func (g *guard) lock(ctx context.Context) error {
	var ours bool
	err := g.conn.QueryRow(ctx, `SELECT pg_catalog.pg_try_advisory_lock($1, pg_catalog.hashtext($2))`, int32(lockClass), g.slot).Scan(&ours)
	if err != nil {
		return fmt.Errorf("lock replays: %w", err)
	}
	if !ours {
		return ErrBusy
	}
	return nil
}

// errSession ends a replay: the lock is lost, and what was read may not hold any more.
var errSession = errors.New("the session with PostgreSQL is lost")

// verify fails when the session, and so the lock, is lost. It does not end with
// ctx: that would end the session.
func (g *guard) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyTimeout)
	defer cancel()
	if err := g.conn.Ping(ctx); err != nil {
		return fmt.Errorf("%w: %w", errSession, err)
	}
	return nil
}

// confirmed is how far the slot's streamer has confirmed: every row of a commit
// before that is in event_log or in the dead-letter table, or was.
func (g *guard) confirmed(ctx context.Context) (pglogrepl.LSN, error) {
	return confirmedFlush(ctx, g.conn, g.slot)
}

const (
	verifyTimeout = 15 * time.Second
	settlePoll    = 50 * time.Millisecond
	// settleNotice is after how long of waiting the log says so, and again.
	settleNotice = 10 * time.Second
)

// settled waits until the streamer has confirmed everything that has been
// committed so far, and returns a position behind all of that: rows which any
// snapshot taken before shows are delivered then, or lost.
//
// The position is that of a commit of our own. That of WAL which merely exists
// may lie between two records, and a slot would not reach it on an idle server.
func (g *guard) settled(ctx context.Context, log *slog.Logger) (pglogrepl.LSN, error) {
	var text string
	batch := &pgx.Batch{}
	batch.Queue(`SET synchronous_commit = local`)
	batch.Queue(`SELECT pg_catalog.pg_logical_emit_message(true, 'diehard', 'replay')`)
	if err := g.conn.SendBatch(ctx, batch).Close(); err != nil {
		return 0, fmt.Errorf("mark the WAL: %w", err)
	}
	if err := g.conn.QueryRow(ctx, `SELECT pg_catalog.pg_current_wal_flush_lsn()::text`).Scan(&text); err != nil {
		return 0, fmt.Errorf("read the end of the WAL: %w", err)
	}
	end, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return 0, err
	}
	return end, g.await(ctx, end, log)
}

func (g *guard) await(ctx context.Context, end pglogrepl.LSN, log *slog.Logger) error {
	poll, notice := time.NewTicker(settlePoll), time.NewTicker(settleNotice)
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
