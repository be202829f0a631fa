package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"time"

	"diehard/shared/dev/embedded"
	"diehard/shared/healthcheck"
)

// readyTimeout is how long the programs may take to become ready.
const readyTimeout = time.Minute

// waitUntilReady returns once every address answers /readyz with 200.
func waitUntilReady(ctx context.Context, addresses ...string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, address := range addresses {
		for problem := healthcheck.Check(ctx, address, true); problem != nil; problem = healthcheck.Check(ctx, address, true) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s: %w", address, problem)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

func printWhatToTry(out io.Writer, stack *embedded.Stack) {
	fmt.Fprintf(out, `
Ready. In another terminal:

  curl -si %s/users -H 'content-type: application/json' \
    -d '{"email":"test@example.com","first_name":"Test","last_name":"User"}'

  make query SQL="SELECT event_type, environment, event_context, commit_lsn FROM event_log"
`, apiAddress())
	if _, err := exec.LookPath("psql"); err == nil && stack.Postgres != nil {
		fmt.Fprint(out, "\n  make psql SQL=\"table slot_lag\"\n")
	}
	fmt.Fprintf(out, "\n  make streamer DO=\"status --watch\"   (also doctor, verify, bookmark, replay, deadletter)\n"+
		"\n  http://%s/ shows the streamer at work, http://%s/docs tries the api.\n", streamerAddress(), apiAddress())
	fmt.Fprint(out, "\nCtrl-C stops everything; data stays in .dev.\n\n")
}
