// Package idempotency remembers requests by the key that their client gave, so that a
// repeated one gets the first one's answer. A key is stored in the transaction of its
// request: both are there or neither.
package idempotency

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/postgres"
)

// Lifetime is how long a key is valid.
const Lifetime = 24 * time.Hour

// Errors that the client caused, or that a retry solves.
var (
	ErrRunning = errors.New("a request with this idempotency key is still in progress")
	ErrReused  = errors.New("this idempotency key was used for another request")
)

const (
	lockKey   = "SELECT pg_catalog.pg_try_advisory_xact_lock($1)"
	selectKey = `SELECT request, first_id FROM public.diehard_idempotency_keys
		WHERE key = $1 AND created_at > pg_catalog.now() - $2::interval ORDER BY created_at DESC LIMIT 1`
	insertKey = "INSERT INTO public.diehard_idempotency_keys (key, request, first_id) VALUES ($1, $2, $3)"
	cleanKeys = "SELECT public.diehard_idempotency_keys_clean()"
)

// Digest is the SHA-256 of a request.
type Digest [sha256.Size]byte

// Key is an idempotency key as stored: the hash of caller and text, so that callers do
// not share keys. The zero Key is none.
type Key [sha256.Size]byte

// NewKey returns the key of caller with this text; none for an empty text.
func NewKey(caller, text string) Key {
	if text == "" {
		return Key{}
	}
	return sha256.Sum256(fmt.Appendf(nil, "%d %s %s", len(caller), caller, text))
}

// IsZero reports whether there is no key.
func (k Key) IsZero() bool { return k == Key{} }

// Use is the earlier request that used a key.
type Use struct {
	Digest Digest
	ID     uuid.UUID // what it made: a user, or the first of its events
}

// Claim locks k until the end of tx, which is READ COMMITTED, and returns the earlier
// request that used it, nil if there is none. [ErrRunning] if another transaction holds
// the lock. The second statement sees what the previous holder of the lock committed.
func (k Key) Claim(ctx context.Context, tx pgx.Tx) (*Use, error) {
	var (
		batch pgx.Batch
		mine  bool
		found *Use
	)
	batch.Queue(lockKey, int64(binary.BigEndian.Uint64(k[:]))).QueryRow(func(row pgx.Row) error { //nolint:gosec // any 64 bits will do
		return row.Scan(&mine)
	})
	batch.Queue(selectKey, k[:], Lifetime).QueryRow(func(row pgx.Row) error {
		var digest []byte
		var use Use
		err := row.Scan(&digest, &use.ID)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		copy(use.Digest[:], digest)
		found = &use
		return err
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("claim idempotency key: %w", err)
	}
	if !mine {
		return nil, ErrRunning
	}
	return found, nil
}

// Save queues the insert of the request that used k.
func (k Key) Save(batch *pgx.Batch, use Use) {
	batch.Queue(insertKey, k[:], use.Digest[:], pgtype.UUID{Bytes: use.ID, Valid: true})
}

// execer runs a statement.
type execer interface {
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
}

// Clean deletes expired keys, at once and then at each interval, until ctx ends.
func Clean(ctx context.Context, db execer, interval time.Duration, log *slog.Logger) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if _, err := db.Exec(ctx, cleanKeys); err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "deletion of expired idempotency keys failed, retrying", "error", postgres.Redact(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
