// Command api creates users and takes events over HTTP. Each user's event is
// written to the outbox in the same transaction.
//
//	api             serves, configured by the environment
//	api key [NAME]  prints a new key for a caller, and its hash for API_KEYS
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"diehard/api/config"
	"diehard/api/events"
	"diehard/api/httpapi"
	"diehard/api/keys"
	"diehard/api/users"
	"diehard/shared/postgres"
	"diehard/shared/run"
	"diehard/shared/telemetry"
)

const (
	// flushTimeout bounds what Sentry may take at the end.
	flushTimeout = 2 * time.Second
	// cleanEvery is how often idempotency keys that are too old are looked for.
	cleanEvery = time.Hour

	exitUsage = 2
)

func main() {
	switch arguments := os.Args[1:]; {
	case len(arguments) == 0:
		serveOrExit()
	case arguments[0] == "healthcheck":
		os.Exit(healthcheck(context.Background(), arguments[1:], os.Stderr))
	case arguments[0] == "key" && len(arguments) <= 2:
		printKey(append(arguments, "")[1])
	default:
		fmt.Fprintln(os.Stderr, "usage: api                        serve; see .env.example for the settings\n"+
			"       api key [NAME]             print a new key for a caller, and its hash for API_KEYS\n"+
			"       api healthcheck [--ready]  ask the api at API_ADDR whether it lives, or can work")
		os.Exit(exitUsage)
	}
}

// printKey prints a new key for the caller name, which may be empty.
func printKey(name string) {
	secret, entry, err := keys.New(name)
	if err != nil {
		fmt.Fprintln(os.Stderr, "api key:", err)
		os.Exit(exitUsage)
	}
	fmt.Printf("key for the caller, shown only now:  %s\nhash for API_KEYS:                   %s\n", secret, entry)
}

func serveOrExit() {
	cfg, err := config.Parse()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitUsage)
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

func addressHint(err error) string {
	if errors.Is(err, syscall.EADDRINUSE) {
		return "another program is there: choose another address"
	}
	return "choose an address of this machine, or a port that you may use"
}

// serve runs the api until ctx ends.
func serve(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	flush, err := telemetry.InitSentry(cfg.Sentry, "api")
	if err != nil {
		return err
	}
	defer flush(flushTimeout)
	callers, err := keys.Parse(cfg.Access.Keys)
	if err != nil {
		return fmt.Errorf("API_KEYS: %w", err)
	}
	pool, err := postgres.NewPool(ctx, cfg.Postgres, "diehard-api")
	if err != nil {
		return err
	}
	defer pool.Close()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Access.Addr)
	if err != nil {
		return fmt.Errorf("API_ADDR %s: %w (%s)", cfg.Access.Addr, err, addressHint(err))
	}
	timeouts := httpapi.Timeouts{Header: cfg.HeaderTimeout, Body: cfg.BodyTimeout, Request: cfg.RequestTimeout, Stream: cfg.StreamTimeout}
	published := events.New(pool, cfg.Access.Environment)
	handler := httpapi.New(httpapi.Deps{ //nolint:contextcheck // handlers use the context of their request
		Users:       users.New(pool, cfg.Access.Environment),
		Events:      published,
		Ready:       pool.Ping,
		Registry:    telemetry.NewRegistry(),
		Log:         log,
		Timeouts:    timeouts,
		MaxRequests: cfg.MaxRequests,
		Keys:        callers,
		RateLimit:   cfg.RateLimit,
	})
	if callers.Empty() && !cfg.Access.Loopback() {
		log.Warn("everybody who reaches this address may write: set API_KEYS before you use it for more than trials")
	}
	here := log.With("address", "http://"+listener.Addr().String(), "environment", cfg.Access.Environment,
		"database", postgres.RedactURL(cfg.Postgres.URL))
	go func() {
		announce(ctx, pool.Ping, here)
		published.CleanKeys(ctx, cleanEvery, log)
	}()
	return httpapi.Serve(ctx, httpapi.NewServer(handler, timeouts, log), listener, cfg.ShutdownTimeout)
}
