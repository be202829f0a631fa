package main

import (
	"context"
	"log/slog"
	"time"

	"diehard/shared/postgres"
)

const (
	askTimeout = 5 * time.Second
	askAgain   = time.Second
)

// announce says in the log that the api is ready once its database answers ping.
// Until then it says once that it only listens, and why.
func announce(ctx context.Context, ping func(context.Context) error, log *slog.Logger) {
	for tries := 0; ; tries++ {
		err := ask(ctx, ping)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			log.Info("api ready")
			return
		case tries == 0:
			log.Warn("api listens, but PostgreSQL cannot be used: requests are answered with 503 until it can", "error", postgres.Explain(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(askAgain):
		}
	}
}

func ask(ctx context.Context, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return ping(ctx)
}
