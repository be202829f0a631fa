package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spf13/cobra"

	"diehard/shared/clickhouse"
	"diehard/shared/failure"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
	"diehard/streamer/config"
	"diehard/streamer/ops"
	"diehard/streamer/pipeline"
	"diehard/streamer/retention"
)

func runCommand() *cobra.Command {
	var start lsnFlag
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Stream until SIGTERM or SIGINT; the default",
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
			reader, err := openReader(cfg.ClickHouse)
			if err != nil {
				return err
			}
			defer func() { _ = reader.Close() }()
			flow := cfg.Pipeline()
			flow.StartLSN, flow.Reader = start.LSN, reader
			return stream(cmd.Context(), cfg, flow, conn, log)
		},
	}
	cmd.Flags().Var(&start, "start-lsn", "skip every event committed before this position; it must not lie before what the slot has confirmed")
	return cmd
}

// stream runs the pipeline and the maintenance of the outbox until ctx ends, and shows what they do.
func stream(ctx context.Context, cfg config.Config, flow pipeline.Config, conn clickhouse.Conn, log *slog.Logger) error {
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
	maintainer := &retention.Maintainer{Postgres: probe.Postgres, Schema: cfg.Postgres.Schema, Retention: cfg.Retention, Log: log}
	monitor := ops.NewMonitor(ops.Options{
		Addr: cfg.Addr, Hosts: cfg.Hosts, Probe: probe, MaxLag: int64(cfg.MaxLag), Retention: cfg.Retention, Maintenance: maintainer.Err, Log: log,
		Environment: cfg.Environment, Shard: cfg.Replication.Shard.String(),
	})
	p := pipeline.New(flow, conn, log, monitor)
	maintainer.Active = func() bool { // also while ClickHouse is away: the outbox needs partitions, and what is delivered may go
		s := p.Progress().State()
		return s == pipeline.Streaming || s == pipeline.Retrying
	}
	stop, err := monitor.Start(ctx, p.Progress())
	if err != nil {
		return err
	}
	defer stop()
	maintaining, stopMaintenance := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stopMaintenance()
	group.Go(func() { maintainer.Run(maintaining) })
	log.Info("starting", "slot", flow.Origin.SlotName(), "clickhouse", cfg.ClickHouse.Address(), "version", telemetry.Build().Version)
	if err := runUntilStopped(ctx, p, monitor, cfg.ExitOnFailure, log); err != nil {
		return err
	}
	log.Info("stopped", "confirmed_lsn", p.Progress().Confirmed().String())
	return nil
}

const (
	firstFailureWait = time.Second
	maxFailureWait   = 30 * time.Second
)

// runUntilStopped runs the pipeline again after a fatal error, with back-off: until an
// operator has acted, the streamer is up and not ready, and says why. What only
// another configuration can fix ends the program, as exit asks for with any error.
func runUntilStopped(ctx context.Context, p *pipeline.Pipeline, monitor *ops.Monitor, exit bool, log *slog.Logger) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstFailureWait, maxFailureWait
	for {
		flushes, began := p.Progress().LastFlush(), time.Now()
		err := p.Run(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		monitor.Failed(err)
		if cause, _ := failure.CauseOf(err); exit || cause == failure.Configuration {
			return err
		}
		if p.Progress().LastFlush() != flushes || time.Since(began) > maxFailureWait {
			wait.Reset()
		}
		pause := wait.NextBackOff()
		log.Error("the streamer cannot run, retrying", "error", err, "wait", pause.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// sentryTimeout bounds what Sentry may take at the end.
const sentryTimeout = 2 * time.Second
