package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/spf13/cobra"

	"diehard/shared/clickhouse"
	"diehard/shared/postgres"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
	"diehard/streamer/config"
	"diehard/streamer/ops"
)

// withClickHouse calls do with a connection to a ClickHouse that answers.
func withClickHouse(cmd *cobra.Command, do func(ctx context.Context, cfg config.Config, conn clickhouse.Conn) error) error {
	cfg, err := settings.Parse[config.Config](cmd.CommandPath())
	if err != nil {
		return err
	}
	conn, err := clickhouse.Open(cmd.Context(), cfg.ClickHouse)
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(cmd.Context(), cfg, conn)
}

// withProbe calls do with a probe of databases that need not answer.
func withProbe(cmd *cobra.Command, do func(ctx context.Context, cfg config.Config, probe *ops.Probe) error) error {
	cfg, err := settings.Parse[config.Config](cmd.CommandPath())
	if err != nil {
		return err
	}
	conn, err := openClickHouse(cfg.ClickHouse)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	probe, err := newProbe(cmd.Context(), cfg, conn)
	if err != nil {
		return err
	}
	defer probe.Postgres.Close()
	return do(cmd.Context(), cfg, probe)
}

// newProbe shares conn; the caller closes the probe's pool.
func newProbe(ctx context.Context, cfg config.Config, conn clickhouse.Conn) (*ops.Probe, error) {
	pool, err := postgres.NewPool(ctx, postgres.Config{URL: cfg.Postgres.Address(), Schema: cfg.Postgres.Schema, MaxConns: 2}, "diehard-streamer-watch")
	if err != nil {
		return nil, err
	}
	return &ops.Probe{
		Postgres: pool, ClickHouse: conn, Origin: cfg.Origin(),
		EventLog: cfg.ClickHouse.EventLogTable, DeadLetter: cfg.ClickHouse.DeadLetterTable,
	}, nil
}

func newLogger(cfg config.Config) *slog.Logger {
	return telemetry.NewLogger(cfg.Log, os.Stderr, slog.String("program", "streamer"), slog.String("environment", cfg.Environment))
}

// compressionBuffer is after how many bytes clickhouse-go sends what it has of a block that it builds, such as
// dead letters and the rows among which they are looked for. It keeps its buffer. Sink.Insert needs none.
const compressionBuffer = 1 << 20

// openClickHouse does not wait for the server: the pipeline retries by itself.
func openClickHouse(cfg clickhouse.Config) (clickhouse.Conn, error) {
	return openWith(cfg, func(o *ch.Options) { o.MaxCompressionBuffer = compressionBuffer })
}

// openReader opens a pool of a single connection, see sink.Sink.ReadThrough.
func openReader(cfg clickhouse.Config) (clickhouse.Conn, error) {
	return openWith(cfg, func(o *ch.Options) { o.MaxOpenConns, o.MaxIdleConns = 1, 1 })
}

func openWith(cfg clickhouse.Config, set func(*ch.Options)) (clickhouse.Conn, error) {
	options, err := clickhouse.Options(cfg)
	if err != nil {
		return nil, err
	}
	set(options)
	conn, err := clickhouse.OpenOptions(options)
	if err != nil {
		return nil, fmt.Errorf("connect to ClickHouse: %w", err)
	}
	return conn, nil
}
