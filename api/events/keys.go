package events

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
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/postgres"
)

// KeyLifetime is how long an idempotency key is remembered.
const KeyLifetime = 24 * time.Hour

const (
	lockKey   = "SELECT pg_try_advisory_xact_lock($1)"
	selectKey = `SELECT request, first_id FROM public.idempotency_keys
		WHERE key = $1 AND created_at > now() - $2::interval ORDER BY created_at DESC LIMIT 1`
	insertKey = "INSERT INTO public.idempotency_keys (key, request, first_id) VALUES ($1, $2, $3)"
	cleanKeys = "SELECT public.idempotency_keys_clean()"
)

// key is an idempotency key as it is stored: a caller's keys are its own.
type key [sha256.Size]byte

func keyOf(caller, text string) key {
	return sha256.Sum256(fmt.Appendf(nil, "%d %s %s", len(caller), caller, text))
}

// stored is the request that a key was used for.
type stored struct {
	request [sha256.Size]byte
	first   uuid.UUID
}

// claim makes k this transaction's own until its end and returns the request
// that it was used for before, nil if there is none. [ErrKeyRunning] if another
// transaction has it. Each statement sees what was committed before it, so the
// second one sees the key of whoever had the lock.
func (k key) claim(ctx context.Context, tx pgx.Tx) (*stored, error) {
	var (
		batch pgx.Batch
		mine  bool
		found *stored
	)
	batch.Queue(lockKey, int64(binary.BigEndian.Uint64(k[:]))).QueryRow(func(row pgx.Row) error { //nolint:gosec // any 64 bits will do
		return row.Scan(&mine)
	})
	batch.Queue(selectKey, k[:], KeyLifetime).QueryRow(func(row pgx.Row) error {
		var request []byte
		var before stored
		err := row.Scan(&request, &before.first)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		copy(before.request[:], request)
		found = &before
		return err
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("claim idempotency key: %w", err)
	}
	if !mine {
		return nil, ErrKeyRunning
	}
	return found, nil
}

// keep remembers what k was used for.
func (k key) keep(ctx context.Context, tx pgx.Tx, request [sha256.Size]byte, first uuid.UUID) error {
	if _, err := tx.Exec(ctx, insertKey, k[:], request[:], pgtype.UUID{Bytes: first, Valid: true}); err != nil {
		return fmt.Errorf("keep idempotency key: %w", err)
	}
	return nil
}

// CleanKeys forgets idempotency keys that are past their lifetime, at once and
// then every so often until ctx ends.
func (s *Service) CleanKeys(ctx context.Context, every time.Duration, log *slog.Logger) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if _, err := s.db.Exec(ctx, cleanKeys); err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "idempotency keys not cleaned, trying again later", "error", postgres.Redact(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
