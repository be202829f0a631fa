package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"diehard/api/config"
	"diehard/api/events"
	"diehard/api/httpapi"
	"diehard/api/idempotency"
	"diehard/api/keys"
	"diehard/api/users"
	"diehard/migrations"
	"diehard/shared/event"
	"diehard/shared/hostcheck"
	"diehard/shared/postgres"
	"diehard/shared/telemetry"
)

const (
	// flushTimeout bounds the last delivery to Sentry.
	flushTimeout = 2 * time.Second
	// cleanEvery is how often expired idempotency keys are deleted.
	cleanEvery = time.Hour
)

func runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Serve HTTP until SIGTERM or SIGINT",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Parse()
			if err != nil {
				return usageError{err}
			}
			log := telemetry.NewLogger(cfg.Log, os.Stderr, slog.String("program", "api"))
			if err := serve(cmd.Context(), cfg, log); err != nil {
				return postgres.Redact(err)
			}
			log.Info("api stopped")
			return nil
		},
	}
}

// serve runs the api until ctx ends.
func serve(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	flush, err := telemetry.InitSentry(cfg.Sentry, "api")
	if err != nil {
		return err
	}
	defer flush(flushTimeout)
	boundMemory(int64(cfg.MaxBodyBytes))
	callers, err := keys.Parse(cfg.Access.Keys)
	if err != nil {
		return fmt.Errorf("API_KEYS: %w", err)
	}
	pool, err := postgres.NewProducerPool(cfg.Postgres, "diehard-api")
	if err != nil {
		return err
	}
	defer pool.Close()
	listener, err := listen(ctx, "API_ADDR", cfg.Access.Addr)
	if err != nil {
		return err
	}
	metrics, err := listen(ctx, "API_METRICS_ADDR", cfg.Access.MetricsAddr)
	if err != nil {
		return err
	}
	timeouts := httpapi.Timeouts{
		Header: cfg.HeaderTimeout, Body: cfg.BodyTimeout, BodyRate: int64(cfg.BodyMinRate), Request: cfg.RequestTimeout, Stream: cfg.StreamTimeout,
	}
	registry := telemetry.NewRegistry()
	database := &readiness{db: pool, sets: []migrations.Set{migrations.Outbox(cfg.Postgres.Schema, ""), migrations.API("")}}
	outbox := event.Outbox{Schema: cfg.Postgres.Schema}
	handler := httpapi.New(httpapi.Deps{
		Users:        users.New(pool, cfg.Access.Environment).WithOutbox(outbox),
		Events:       events.New(pool, cfg.Access.Environment).WithOutbox(outbox),
		Ready:        database.ready,
		Registry:     registry,
		Environment:  cfg.Access.Environment,
		Log:          log,
		Timeouts:     timeouts,
		MaxRequests:  cfg.MaxRequests,
		MaxStreams:   max(1, int(pool.Config().MaxConns)/2),
		MaxBodyBytes: int64(cfg.MaxBodyBytes),
		Keys:         callers,
		RateLimit:    cfg.RateLimit,
		LoopbackOnly: callers.Empty() && hostcheck.IsLoopback(listener.Addr()),
		Hosts:        cfg.Access.Hosts,
	})
	if callers.Empty() && !hostcheck.IsLoopback(listener.Addr()) {
		log.Warn("API is open: API_KEYS is not set")
	}
	here := log.With("address", "http://"+listener.Addr().String(), "environment", cfg.Access.Environment,
		"database", postgres.RedactURL(cfg.Postgres.URL))
	go func() {
		logWhenReady(ctx, database.check, here)
		idempotency.Clean(ctx, pool, cleanEvery, log)
	}()
	return serveAll(ctx, cfg.ShutdownTimeout,
		endpoint{httpapi.NewServer(handler, timeouts, log), listener},
		endpoint{httpapi.NewServer(metricsHandler(registry, metrics, cfg.Access.Hosts), timeouts, log), metrics})
}

// metricsHandler serves /metrics on listener, which may be nil.
func metricsHandler(registry *prometheus.Registry, listener net.Listener, hosts []string) http.Handler {
	handler := httpapi.MetricsHandler(registry)
	if listener != nil && hostcheck.IsLoopback(listener.Addr()) {
		return hostcheck.Protect(handler, hosts)
	}
	return handler
}

// endpoint is a server and where it listens; nil: nowhere.
type endpoint struct {
	server   *http.Server
	listener net.Listener
}

// serveAll serves until ctx ends or one of the endpoints fails.
func serveAll(ctx context.Context, timeout time.Duration, endpoints ...endpoint) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, e := range endpoints {
		if e.listener != nil {
			group.Go(func() error { return httpapi.Serve(ctx, e.server, e.listener, timeout) })
		}
	}
	return group.Wait()
}

// listen listens on addr, the value of variable; nil without one.
func listen(ctx context.Context, variable, addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w (%s)", variable, addr, err, addressHint(err))
	}
	return listener, nil
}

func addressHint(err error) string {
	if errors.Is(err, syscall.EADDRINUSE) {
		return "another program is there: choose another address"
	}
	return "choose an address of this machine, or a port that you may use"
}
