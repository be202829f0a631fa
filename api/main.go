// Command api creates users over HTTP. Each user's event is written to the
// outbox in the same transaction.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"diehard/api/config"
	"diehard/api/httpapi"
	"diehard/api/users"
	"diehard/shared/postgres"
	"diehard/shared/run"
	"diehard/shared/telemetry"
)

// flushTimeout bounds what Sentry may take at the end.
const flushTimeout = 2 * time.Second

func main() {
	if len(os.Args) > 1 && os.Args[1] == "healthcheck" {
		os.Exit(healthcheck(context.Background(), os.Args[2:], os.Stderr))
	}
	cfg, err := config.Parse()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ctx, stop := run.Context(context.Background())
	defer stop()
	log := telemetry.NewLogger(cfg.Log, os.Stderr, slog.String("program", "api"))
	if err := serve(ctx, cfg, log); err != nil {
		log.Error("api stopped", "error", postgres.Redact(err))
		os.Exit(1)
	}
	log.Info("api stopped")
}

// serve runs the api until ctx ends.
func serve(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	flush, err := telemetry.InitSentry(cfg.Sentry, "api")
	if err != nil {
		return err
	}
	defer flush(flushTimeout)
	pool, err := postgres.NewPool(ctx, cfg.Postgres, "diehard-api")
	if err != nil {
		return err
	}
	defer pool.Close()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Addr)
	if err != nil {
		return fmt.Errorf("API_ADDR %s: %w (is another program there? choose another address)", cfg.Addr, err)
	}
	handler := httpapi.New(httpapi.Deps{ //nolint:contextcheck // handlers use the context of their request
		Users:    users.New(pool, cfg.Environment),
		Ready:    pool.Ping,
		Registry: telemetry.NewRegistry(),
		Log:      log,
		Timeout:  cfg.RequestTimeout,
	})
	log.Info("api ready", "address", "http://"+listener.Addr().String(), "environment", cfg.Environment,
		"database", postgres.RedactURL(cfg.Postgres.URL))
	return httpapi.Serve(ctx, httpapi.NewServer(handler, cfg.RequestTimeout, log), listener, cfg.ShutdownTimeout)
}
