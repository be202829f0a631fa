package migrations

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/pressly/goose/v3"
)

// PendingError means that the database has not all migrations that the program needs.
type PendingError struct {
	Command     string // that runs them
	Has, Wanted int64  // versions
}

// Error implements error.
func (e *PendingError) Error() string {
	return fmt.Sprintf("the tables of the database have version %d, the program needs %d: run `%s`", e.Has, e.Wanted, e.Command)
}

// Check reports whether all migrations have run, as the programs may ask: it reads the
// version table alone. A database that is newer is fine.
//
// Errors: [*PendingError], or those of pgx, undefined_table if none has run.
func (s Set) Check(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, arguments ...any) pgx.Row
},
) error {
	wanted, err := s.latest()
	if err != nil {
		return err
	}
	var has int64
	err = db.QueryRow(ctx, "SELECT coalesce(pg_catalog.max(version_id), 0) FROM "+s.store().Tablename()).Scan(&has)
	if err != nil {
		return fmt.Errorf("version of the tables: %w", err)
	}
	if has < wanted {
		return &PendingError{Command: s.command, Has: has, Wanted: wanted}
	}
	return nil
}

// latest returns the highest version of the set.
func (s Set) latest() (version int64, err error) {
	names, err := fs.Glob(postgresFiles, s.name+"/*.sql")
	if err != nil {
		return 0, fmt.Errorf("embedded migrations: %w", err)
	}
	for _, name := range names {
		v, err := goose.NumericComponent(name)
		if err != nil {
			return 0, fmt.Errorf("embedded migrations: %w", err)
		}
		version = max(version, v)
	}
	return version, nil
}
