package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	"diehard/shared/health"
)

// healthcheck is the command `api healthcheck [--ready]`, for containers: it asks
// the api on addr whether it lives, or can work, and returns the exit code.
func healthcheck(ctx context.Context, addr string, args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("api healthcheck", flag.ContinueOnError)
	flags.SetOutput(stderr)
	ready := flags.Bool("ready", false, "ask whether it can work: /readyz instead of /healthz")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := health.Check(ctx, addr, *ready); err != nil {
		fmt.Fprintln(stderr, "api:", err)
		return 1
	}
	return 0
}
