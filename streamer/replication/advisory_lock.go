package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"diehard/shared/postgres"
)

// AdvisoryLock is a session of PostgreSQL that holds a lock for a program that writes into
// ClickHouse beside the streamer. It is also the proof that the server has not
// restarted since the session began: what a slot had confirmed then, it cannot have
// forgotten. Not safe for concurrent use.
type AdvisoryLock struct {
	Conn     *pgx.Conn // for what its owner asks; it must stay open
	SystemID string
	Timeline uint32
}

// OpenAdvisoryLock connects. The caller closes.
func OpenAdvisoryLock(ctx context.Context, url, application string) (*AdvisoryLock, error) {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: url}, postgres.Options{Application: application})
	if err != nil {
		return nil, err
	}
	g := &AdvisoryLock{Conn: conn}
	// The name of a WAL file begins with its timeline.
	err = conn.QueryRow(ctx, `SELECT system_identifier::text,
			('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::bigint
		FROM pg_catalog.pg_control_system()`).Scan(&g.SystemID, &g.Timeline)
	if err != nil {
		g.Close()
		return nil, fmt.Errorf("identify the server: %w", err)
	}
	return g, nil
}

// Lock reports whether the lock is ours now. key is what pg_try_advisory_lock takes, an
// expression of args.
func (g *AdvisoryLock) Lock(ctx context.Context, key string, args ...any) (bool, error) {
	var ours bool
	if err := g.Conn.QueryRow(ctx, `SELECT pg_catalog.pg_try_advisory_lock(`+key+`)`, args...).Scan(&ours); err != nil {
		return false, fmt.Errorf("lock: %w", err)
	}
	return ours, nil
}

// Close releases the lock by itself: the server may take a moment to notice the end
// of the session, and the next one must not find it busy.
func (g *AdvisoryLock) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = g.Conn.Exec(ctx, `SELECT pg_catalog.pg_advisory_unlock_all()`) // a lost session has none
	_ = g.Conn.Close(ctx)                                                 // it is gone either way
}

// ErrSession means that the lock is lost, and that what was read may not hold any more.
var ErrSession = errors.New("the session with PostgreSQL is lost")

const verifyTimeout = 15 * time.Second

// Verify fails when the lock is not held any more, by the session that took it. It
// does not end with ctx: that would end the session.
//
// Errors: ErrSession.
func (g *AdvisoryLock) Verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyTimeout)
	defer cancel()
	var held bool
	err := g.Conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_locks
		WHERE locktype = 'advisory' AND pid = $1::int AND pid = pg_catalog.pg_backend_pid() AND granted)`,
		int32(g.Conn.PgConn().PID())).Scan(&held) //nolint:gosec // process ids are small
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrSession, err)
	case !held:
		return fmt.Errorf("%w: the advisory lock is not held", ErrSession)
	}
	return nil
}
