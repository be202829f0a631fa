package deadletter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"diehard/shared/postgres"
)

// lockKey is the advisory lock that the one retry holds that may run ("retry" in ASCII).
const lockKey = 0x7265747279

// ErrBusy means that another retry is running.
var ErrBusy = errors.New("another `streamer deadletter retry` is running: wait until it has ended")

// guard is a session of PostgreSQL that holds the lock. It is also the proof
// that the server has not restarted since the session began: what a slot had
// confirmed then, it cannot have forgotten.
type guard struct {
	conn     *pgx.Conn
	systemID string
}

func openGuard(ctx context.Context, url string) (*guard, error) {
	cfg, err := postgres.ParseConfig(url, "diehard-streamer-deadletter")
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", postgres.Redact(err))
	}
	g := &guard{conn: conn}
	if err := g.lock(ctx); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *guard) lock(ctx context.Context) error {
	var ours bool
	err := g.conn.QueryRow(ctx, `SELECT pg_catalog.pg_try_advisory_lock($1), system_identifier::text FROM pg_catalog.pg_control_system()`,
		int64(lockKey)).Scan(&ours, &g.systemID)
	if err != nil {
		return fmt.Errorf("lock retries: %w", err)
	}
	if !ours {
		return ErrBusy
	}
	return nil
}

// close ends the session. It gives the lock back by itself: the server may take a
// moment to notice, and the next retry shall not find it busy.
func (g *guard) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = g.conn.Exec(ctx, `SELECT pg_catalog.pg_advisory_unlock_all()`) // a lost session has none
	_ = g.conn.Close(ctx)                                                 // it is gone either way
}

// verify fails when the session, and so the lock, is lost.
func (g *guard) verify(ctx context.Context) error {
	if err := g.conn.Ping(ctx); err != nil {
		return fmt.Errorf("verify that this retry is the only one: %w", err)
	}
	return nil
}

// confirmed is how far the slot's streamer has confirmed: every row of a commit
// below that position is in event_log or in the dead-letter table. 0 if the slot
// does not exist on this server.
func (g *guard) confirmed(ctx context.Context, systemID, slot string) (pglogrepl.LSN, error) {
	if systemID != g.systemID {
		return 0, nil
	}
	var text string
	err := g.conn.QueryRow(ctx, `SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots
		WHERE slot_name = $1 AND confirmed_flush_lsn IS NOT NULL`, slot).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read slot %s: %w", slot, err)
	}
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return 0, fmt.Errorf("read slot %s: %w", slot, err)
	}
	return lsn, nil
}
