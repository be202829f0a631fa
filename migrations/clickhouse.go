package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/pressly/goose/v3"

	"diehard/shared/clickhouse"
)

//go:embed clickhouse/*.sql
var clickhouseFiles embed.FS

// UpClickHouse migrates ClickHouse and creates its database if it is missing.
// ClickHouse has no lock to take; every statement can be repeated, so that two
// processes at once do no harm. [Up] serialises them.
func UpClickHouse(ctx context.Context, cfg clickhouse.Config, log *slog.Logger) error {
	if err := refuseTextIndex(ctx, cfg); err != nil {
		return err
	}
	return upClickHouse(ctx, cfg, log)
}

func upClickHouse(ctx context.Context, cfg clickhouse.Config, log *slog.Logger) error {
	names, err := createDatabase(ctx, cfg)
	if err != nil {
		return err
	}
	db, provider, err := clickhouseProvider(cfg, names)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := up(ctx, provider, ClickHouse, log); err != nil || !cfg.TextIndex {
		return err
	}
	return addTextIndex(ctx, db, cfg, names, log)
}

// StatusClickHouse lists the migrations of ClickHouse in order. It changes nothing.
func StatusClickHouse(ctx context.Context, cfg clickhouse.Config) ([]Status, error) {
	names, err := namesOf(cfg)
	if err != nil {
		return nil, err
	}
	db, provider, err := clickhouseProvider(cfg, names)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	var tables uint64
	err = db.QueryRowContext(ctx, "SELECT count() FROM system.tables WHERE database = ? AND name = ?",
		cfg.Database, versionsTable(cfg)).Scan(&tables)
	if err != nil && !clickhouse.IsUnknownDatabase(err) {
		return nil, clickhouse.Explain(cfg, err)
	}
	return statuses(ctx, provider, ClickHouse, tables > 0)
}

// createDatabase creates the database if it is missing, and returns the names of the tables in it.
func createDatabase(ctx context.Context, cfg clickhouse.Config) (names, error) {
	n, err := namesOf(cfg)
	if err != nil {
		return n, err
	}
	conn, missing, err := connect(ctx, cfg)
	if err != nil {
		return n, err
	}
	defer conn.Close()
	if missing {
		if err := conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+n.Database+" "+n.OnCluster); err != nil {
			return n, fmt.Errorf("create database %s of ClickHouse: %w", n.Database, err)
		}
		return n, nil
	}
	var engine string
	if err := conn.QueryRow(ctx, "SELECT any(engine) FROM system.databases WHERE name = ?", cfg.Database).Scan(&engine); err != nil {
		return n, fmt.Errorf("read the engine of database %s of ClickHouse: %w", n.Database, err)
	}
	if engine == "Replicated" {
		n.replicatedDatabase()
	}
	return n, nil
}

// connect returns a connection to the database of cfg; if that is missing, to the one
// that always exists, because a connection to a missing one is refused.
func connect(ctx context.Context, cfg clickhouse.Config) (conn driver.Conn, missing bool, err error) {
	conn, err = clickhouse.Open(ctx, cfg)
	if !clickhouse.IsUnknownDatabase(err) {
		return conn, false, err
	}
	cfg.Database = "default"
	conn, err = clickhouse.Open(ctx, cfg)
	return conn, true, err
}

// clickhouseProvider returns goose and the connections that the caller closes.
func clickhouseProvider(cfg clickhouse.Config, names names) (*sql.DB, *goose.Provider, error) {
	options, err := clickhouse.Options(cfg)
	if err != nil {
		return nil, nil, err
	}
	files, err := fs.Sub(clickhouseFiles, "clickhouse")
	if err != nil {
		return nil, nil, fmt.Errorf("embedded migrations: %w", err)
	}
	db := driver.OpenDB(options)
	provider, err := goose.NewProvider(goose.DialectClickHouse, db, rendered{files, names},
		goose.WithTableName(names.Versions), goose.WithDisableGlobalRegistry(true), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		_ = db.Close()
		return nil, nil, fmt.Errorf("migrations of ClickHouse: %w", err)
	}
	return db, provider, nil
}
