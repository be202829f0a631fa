package main

import (
	"context"
	"log/slog"
	"time"

	"diehard/shared/postgres"
)

const (
	pingTimeout  = 5 * time.Second
	pingInterval = time.Second
)

// logWhenReady logs once that the api is ready, when ping succeeds. If the first
// ping fails, it logs the reason once.
func logWhenReady(ctx context.Context, ping func(context.Context) error, log *slog.Logger) {
	for tries := 0; ; tries++ {
		err := pingOnce(ctx, ping)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			log.Info("api ready")
			return
		case tries == 0:
			log.Warn("PostgreSQL is unavailable; requests get 503 until it is back", "error", postgres.Explain(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pingInterval):
		}
	}
}

func pingOnce(ctx context.Context, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return ping(ctx)
}
