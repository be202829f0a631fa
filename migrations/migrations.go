// Package migrations brings the schemas of both databases up to date.
//
// Migrations only go forward: undoing the outbox or the event log would delete
// events. Running them again does nothing; running them from two processes at
// once is safe.
package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"time"

	"github.com/pressly/goose/v3"

	"diehard/shared/clickhouse"
	"diehard/shared/postgres"
)

// Databases as named in [Status].
const (
	PostgreSQL = "postgresql"
	ClickHouse = "clickhouse"
)

// Status is one migration of one database.
type Status struct {
	Database  string    // PostgreSQL or ClickHouse
	Version   int64     // ascending from 1
	Name      string    // file name
	AppliedAt time.Time // zero if pending
}

// Applied reports whether the migration has been run.
func (s Status) Applied() bool { return !s.AppliedAt.IsZero() }

// Up runs a set of migrations of PostgreSQL, then those of ClickHouse, while it holds an
// advisory lock in PostgreSQL: another process that does the same waits for its end.
func Up(ctx context.Context, db postgres.Config, set Set, cfg clickhouse.Config, log *slog.Logger) error {
	if err := refuseTextIndex(ctx, cfg); err != nil {
		return err
	}
	return set.withLock(ctx, db, func(db *sql.DB) error {
		if err := set.up(ctx, db, log); err != nil {
			return err
		}
		return upClickHouse(ctx, cfg, log)
	})
}

// up runs what is pending and logs a line for each migration.
func up(ctx context.Context, provider *goose.Provider, database string, log *slog.Logger) error {
	results, err := provider.Up(ctx)
	var partial *goose.PartialError
	if errors.As(err, &partial) {
		results = partial.Applied
		err = fmt.Errorf("%s: %w", path.Base(partial.Failed.Source.Path), partial.Err)
	}
	for _, result := range results {
		log.InfoContext(ctx, "migrated", "database", database,
			"migration", path.Base(result.Source.Path), "took", result.Duration.Round(time.Millisecond))
	}
	if err != nil {
		return fmt.Errorf("migrate %s: %w", database, err)
	}
	return nil
}

// statuses lists the migrations without changing the database: goose would
// create its version table, so it is asked only if the table exists.
func statuses(ctx context.Context, provider *goose.Provider, database string, versioned bool) ([]Status, error) {
	if !versioned {
		var pending []Status
		for _, source := range provider.ListSources() {
			pending = append(pending, Status{Database: database, Version: source.Version, Name: path.Base(source.Path)})
		}
		return pending, nil
	}
	rows, err := provider.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("status of the migrations of %s: %w", database, err)
	}
	list := make([]Status, len(rows))
	for i, row := range rows {
		list[i] = Status{Database: database, Version: row.Source.Version, Name: path.Base(row.Source.Path), AppliedAt: row.AppliedAt}
	}
	return list, nil
}
