package deadletter

import (
	"context"
	"errors"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/replication"
)

// lockKey is the advisory lock of the one retry or drop that may run ("retry" in ASCII).
const lockKey = 0x7265747279

// ErrBusy means that another command changes records.
var ErrBusy = errors.New("another `streamer deadletter retry` or `drop` is running: wait until it has ended")

// lock makes this command the only one that changes records. The caller closes the guard.
func lock(ctx context.Context, postgresURL string) (*replication.AdvisoryLock, error) {
	g, err := replication.OpenAdvisoryLock(ctx, postgresURL, "diehard-streamer-deadletter")
	if err != nil {
		return nil, err
	}
	ours, err := g.Lock(ctx, "$1", int64(lockKey))
	if err == nil && !ours {
		err = ErrBusy
	}
	if err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// confirmed is what the streamer of a slot has confirmed; 0 if the slot is not on the lock's server.
func confirmed(ctx context.Context, g *replication.AdvisoryLock, systemID, slot string) (pglogrepl.LSN, error) {
	if systemID != g.SystemID {
		return 0, nil
	}
	s, err := replication.ReadSlot(ctx, g.Conn, slot)
	if errors.Is(err, replication.ErrNoSlot) {
		return 0, nil
	}
	return s.ConfirmedFlush, err
}
