package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pglogrepl"
	"github.com/spf13/cobra"

	"diehard/shared/clickhouse"
	"diehard/shared/postgres"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
	"diehard/streamer/config"
	"diehard/streamer/ops"
	"diehard/streamer/pipeline"
)

func runCommand() *cobra.Command {
	var start lsnFlag
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Stream until a signal; the default",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := settings.Parse[config.Config]("streamer")
			if err != nil {
				return err
			}
			boundMemory(cfg.Pipeline().Limits)
			log := newLogger(cfg)
			conn, err := openClickHouse(cfg.ClickHouse)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			return stream(cmd.Context(), cfg, start.LSN, conn, log)
		},
	}
	cmd.Flags().Var(&start, "start-lsn", "skip every event committed before this position; it must not lie before what the slot has confirmed")
	return cmd
}

// stream runs the pipeline until ctx ends, and shows what it does.
func stream(ctx context.Context, cfg config.Config, start pglogrepl.LSN, conn driver.Conn, log *slog.Logger) error {
	flush, err := telemetry.InitSentry(cfg.Sentry, "streamer")
	if err != nil {
		return err
	}
	defer flush(sentryTimeout)
	probe, err := newProbe(ctx, cfg, conn)
	if err != nil {
		return err
	}
	defer probe.Postgres.Close()
	monitor := ops.NewMonitor(ops.Options{Addr: cfg.Addr, Probe: probe, MaxLag: int64(cfg.MaxLag), Retention: cfg.Retention, Log: log})
	flow := cfg.Pipeline()
	flow.StartLSN = start
	p := pipeline.New(flow, conn, log, monitor)
	stop, err := monitor.Start(ctx, p.Progress())
	if err != nil {
		return err
	}
	defer stop()
	log.Info("starting", "slot", flow.Slot, "clickhouse", cfg.ClickHouse.Address(), "version", telemetry.Build().Version)
	if err := p.Run(ctx); err != nil {
		telemetry.Report(context.WithoutCancel(ctx), "streamer", err)
		return err
	}
	log.Info("stopped", "confirmed_lsn", p.Progress().Confirmed().String())
	return nil
}

// sentryTimeout bounds what Sentry may take at the end.
const sentryTimeout = 2 * time.Second

// newProbe shares conn; the caller closes the probe's pool.
func newProbe(ctx context.Context, cfg config.Config, conn driver.Conn) (*ops.Probe, error) {
	pool, err := postgres.NewPool(ctx, postgres.Config{URL: cfg.Postgres.URL, MaxConns: 2}, "diehard-streamer-watch")
	if err != nil {
		return nil, err
	}
	from := cfg.Replication.Origin()
	return &ops.Probe{
		Postgres: pool, ClickHouse: conn, Slot: from.Slot, Publication: from.Publication,
		EventLog: cfg.ClickHouse.EventLogTable, DeadLetter: cfg.ClickHouse.DeadLetterTable,
	}, nil
}

func newLogger(cfg config.Config) *slog.Logger {
	return telemetry.NewLogger(cfg.Log, os.Stderr, slog.String("program", "streamer"), slog.String("environment", cfg.Environment))
}

// compressionBuffer is after how many bytes clickhouse-go compresses and sends
// what it has of a block. It looks between columns, so the largest column decides
// on its memory; less than its default keeps the others from adding to it.
const compressionBuffer = 1 << 20

// openClickHouse does not wait for the server: the pipeline retries by itself.
func openClickHouse(cfg clickhouse.Config) (driver.Conn, error) {
	options, err := clickhouse.Options(cfg)
	if err != nil {
		return nil, err
	}
	options.MaxCompressionBuffer = compressionBuffer
	conn, err := ch.Open(options)
	if err != nil {
		return nil, fmt.Errorf("connect to ClickHouse: %w", err)
	}
	return conn, nil
}
