package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	"diehard/shared/health"
	"diehard/shared/settings"
)

// healthcheck is the command `api healthcheck [--ready]`, for containers: it asks
// the api at API_ADDR whether it lives, or can work, and returns the exit code.
func healthcheck(ctx context.Context, args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("api healthcheck", flag.ContinueOnError)
	flags.SetOutput(stderr)
	ready := flags.Bool("ready", false, "ask whether it can work: /readyz instead of /healthz")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	// The address alone: a health check is no place to judge the other settings.
	cfg, err := settings.Parse[struct {
		Addr string `env:"API_ADDR" envDefault:"127.0.0.1:8080" form:"address"`
	}]("api healthcheck")
	if err == nil {
		err = health.Check(ctx, cfg.Addr, *ready)
	}
	if err != nil {
		fmt.Fprintln(stderr, "api:", err)
		return 1
	}
	return 0
}
