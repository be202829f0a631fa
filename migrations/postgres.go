package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"diehard/shared/postgres"
)

//go:embed postgres/*.sql
var postgresFiles embed.FS

const (
	// postgresVersions is goose's table. It has a name of its own, because the
	// application whose database this is may use goose too.
	postgresVersions = "public.diehard_migrations"
	// lockKey is "diehard" in ASCII: the advisory lock of who migrates.
	lockKey = 0x64696568617264
)

// UpPostgres migrates PostgreSQL. Everything is made in schema public.
func UpPostgres(ctx context.Context, url string, log *slog.Logger) error {
	return withLock(ctx, url, func(db *sql.DB) error { return upPostgres(ctx, db, log) })
}

// StatusPostgres lists the migrations of PostgreSQL in order. It changes nothing.
func StatusPostgres(ctx context.Context, url string) ([]Status, error) {
	db, err := openPostgres(url)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	var versioned bool
	if err := db.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", postgresVersions).Scan(&versioned); err != nil {
		return nil, postgres.Explain(fmt.Errorf("connect to PostgreSQL: %w", err))
	}
	provider, err := postgresProvider(db)
	if err != nil {
		return nil, err
	}
	return statuses(ctx, provider, PostgreSQL, versioned)
}

func upPostgres(ctx context.Context, db *sql.DB, log *slog.Logger) error {
	provider, err := postgresProvider(db)
	if err != nil {
		return err
	}
	return up(ctx, provider, PostgreSQL, log)
}

func postgresProvider(db *sql.DB) (*goose.Provider, error) {
	files, err := fs.Sub(postgresFiles, "postgres")
	if err != nil {
		return nil, fmt.Errorf("embedded migrations: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(postgresVersions), goose.WithDisableGlobalRegistry(true), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, fmt.Errorf("migrations of PostgreSQL: %w", err)
	}
	return provider, nil
}

func openPostgres(url string) (*sql.DB, error) {
	config, err := postgres.ParseConfig(url, "diehard-migrate")
	if err != nil {
		return nil, err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // statements run once: nothing to prepare
	config.RuntimeParams["search_path"] = "public"
	return stdlib.OpenDB(*config), nil
}

// withLock runs do while this process is the only one that migrates the
// database. One lock around all of goose, because goose looks at its version
// table before it takes a lock of its own.
func withLock(ctx context.Context, url string, do func(*sql.DB) error) error {
	db, err := openPostgres(url)
	if err != nil {
		return err
	}
	defer db.Close() // ends the session and with it the lock
	holder, err := db.Conn(ctx)
	if err != nil {
		return postgres.Explain(fmt.Errorf("connect to PostgreSQL: %w", err))
	}
	defer holder.Close()
	if _, err := holder.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(lockKey)); err != nil {
		return fmt.Errorf("wait for another migration to end: %w", err)
	}
	return postgres.Redact(do(db))
}
