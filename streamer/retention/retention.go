// Package retention keeps the outbox's partitions: it makes those of the days
// to come and drops those that are old and delivered. The rules, and why they
// lose nothing, are with the SQL functions that it calls (migration retention).
package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/postgres"
)

const (
	// daysAhead is how many days have their partition in advance: time enough to
	// notice a streamer that is down. Without a partition rows go to the default one.
	daysAhead = 7
	// round is the time between two looks at the partitions.
	round = time.Minute
	// soon is the time after a step or a lock that was busy.
	soon = 2 * time.Second
	// callTimeout bounds one call.
	callTimeout = 30 * time.Second
)

// Keeper looks after the partitions of one database.
type Keeper struct {
	Postgres  *pgxpool.Pool
	Retention time.Duration // 0: keep for ever; otherwise at least an hour
	// Active tells whether this streamer holds the slot. A standby does nothing.
	Active func() bool
	Log    *slog.Logger

	mu   sync.Mutex
	last error
}

// Run looks after the partitions until ctx ends. Errors are logged once, shown
// by Err, and tried again: the outbox works without new partitions.
func (k *Keeper) Run(ctx context.Context) {
	for {
		wait := soon
		if k.Active() {
			wait = k.step(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Err is why the last round failed; nil when it did not.
func (k *Keeper) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// step does what there is to do and returns how long to wait for the next.
func (k *Keeper) step(ctx context.Context) time.Duration {
	more, err := k.Step(ctx)
	k.mu.Lock()
	news := err != nil && k.last == nil
	k.last = err
	k.mu.Unlock()
	if news && ctx.Err() == nil {
		k.Log.Warn("the outbox's partitions could not be looked after; trying again", "error", err)
	}
	if more {
		return soon
	}
	return round
}

// Step makes the partitions of the days to come and takes one step with the old
// ones. more reports that another step can follow soon.
func (k *Keeper) Step(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var made int
	if err := k.Postgres.QueryRow(ctx, "SELECT public.outbox_create_partitions($1)", daysAhead).Scan(&made); err != nil {
		return false, explain("make partitions of the outbox", err)
	}
	if made > 0 {
		k.Log.Info("made partitions of the outbox", "partitions", made)
	}
	if k.Retention == 0 {
		return false, nil
	}
	rows, err := k.Postgres.Query(ctx, "SELECT retired, step FROM public.outbox_retire_partitions($1)", k.Retention)
	if err != nil {
		return false, explain("retire partitions of the outbox", err)
	}
	var partition, step string
	_, err = pgx.ForEachRow(rows, []any{&partition, &step}, func() error {
		more = true
		k.Log.Info("old partition of the outbox", "partition", partition, "step", step)
		return nil
	})
	return more, explain("retire partitions of the outbox", err)
}

const (
	undefinedFunction = "42883"
	noPrivilege       = "42501"
)

func explain(op string, err error) error {
	if err == nil {
		return nil
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pg.Code {
		case undefinedFunction:
			err = fmt.Errorf("%w (run `streamer migrate up`)", err)
		case noPrivilege:
			err = fmt.Errorf("%w (GRANT diehard_streamer to this user)", err)
		}
	}
	return fmt.Errorf("%s: %w", op, postgres.Redact(err))
}
