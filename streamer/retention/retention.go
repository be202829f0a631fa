// Package retention maintains the partitions of the outbox: it creates those of the
// next days and drops those that are old and delivered. The rules are documented at
// the SQL functions that it calls.
package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/event"
	"diehard/shared/postgres"
)

const (
	// daysAhead is how many days have their partition in advance. Rows of a day
	// without a partition go to the default partition.
	daysAhead = 7
	// interval is the time between two runs.
	interval = time.Minute
	// stepDelay is the time between two steps of one run, and after a lock timeout.
	stepDelay = 2 * time.Second
	// keysPerCall is the limit of diehard_delete_keys.
	keysPerCall = 10_000
	// callTimeout bounds one call.
	callTimeout = 30 * time.Second
)

// Maintainer maintains the partitions of one database.
type Maintainer struct {
	Postgres  *pgxpool.Pool
	Schema    event.Schema  // of the outbox
	Retention time.Duration // 0: unlimited; otherwise at least an hour
	// Active reports whether this streamer holds the slot. A standby does nothing.
	Active func() bool
	Log    *slog.Logger

	clock clock
	mu    sync.Mutex
	last  error
}

// Run maintains the partitions until ctx ends. An error is logged once, returned by
// Err, and retried: the outbox works without new partitions.
func (m *Maintainer) Run(ctx context.Context) {
	for {
		wait := stepDelay
		if m.Active() {
			wait = m.step(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Err is the error of the last step; nil if it succeeded.
func (m *Maintainer) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

// step takes one step and returns how long to wait for the next.
func (m *Maintainer) step(ctx context.Context) time.Duration {
	more, err := m.Step(ctx)
	m.mu.Lock()
	first := err != nil && m.last == nil
	m.last = err
	m.mu.Unlock()
	if first && ctx.Err() == nil {
		m.Log.Warn("partition maintenance failed, retrying", "error", err)
	}
	if more {
		return stepDelay
	}
	return interval
}

// Step creates missing partitions, deletes old idempotency keys and takes one step in retiring an old partition. more
// reports that another step can follow soon.
func (m *Maintainer) Step(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var now time.Time
	for created := 1; created > 0; { // each in a transaction of its own
		err := m.Postgres.QueryRow(ctx, m.Schema.SQL("SELECT {outbox}.outbox_create_partitions($1::int, 1), clock_timestamp()"), daysAhead).Scan(&created, &now)
		switch {
		case postgres.IsCode(err, pgerrcode.LockNotAvailable):
			return true, nil // long transactions write to the partition: producers must not wait with us
		case err != nil:
			return false, explain("create partitions of the outbox", err)
		case created > 0:
			m.Log.Info("created partition of the outbox")
		}
	}
	more, err = m.deleteKeys(ctx)
	if err != nil || m.Retention == 0 {
		return more, err
	}
	rows, err := m.Postgres.Query(ctx, m.Schema.SQL("SELECT retired, step FROM {outbox}.outbox_retire_partitions($1::interval, $2::timestamptz)"), m.Retention, m.clock.trusted(now))
	if err != nil {
		return false, explain("retire partitions of the outbox", err)
	}
	var partition, step string
	_, err = pgx.ForEachRow(rows, []any{&partition, &step}, func() error {
		more = true
		m.Log.Info("retiring partition of the outbox", "partition", partition, "step", step)
		return nil
	})
	return more, explain("retire partitions of the outbox", err)
}

// deleteKeys deletes idempotency keys of publish_event that are older than a day, so many
// in one call; more reports that there may be others.
func (m *Maintainer) deleteKeys(ctx context.Context) (more bool, err error) {
	var deleted int64
	err = m.Postgres.QueryRow(ctx, m.Schema.SQL("SELECT {outbox}.diehard_delete_keys()")).Scan(&deleted)
	return deleted >= keysPerCall, explain("delete old idempotency keys", err)
}

func explain(op string, err error) error {
	if err == nil {
		return nil
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pg.Code {
		case pgerrcode.UndefinedFunction:
			err = fmt.Errorf("%w (run `streamer migrate up`)", err)
		case pgerrcode.InsufficientPrivilege:
			err = fmt.Errorf("%w (GRANT diehard_streamer to this user)", err)
		}
	}
	return fmt.Errorf("%s: %w", op, postgres.Redact(err))
}
