package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"diehard/shared/dev/embedded"
)

// readyTimeout is how long the programs may take to become ready.
const readyTimeout = time.Minute

// waitUntilReady returns once every address answers /readyz with 200.
func waitUntilReady(ctx context.Context, addresses ...string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, address := range addresses {
		for problem := checkReady(ctx, address); problem != nil; problem = checkReady(ctx, address) {
			select {
			case <-ctx.Done():
				return problem
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

func checkReady(ctx context.Context, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
		return fmt.Errorf("http://%s/readyz: %s: %s", address, answer.Status, strings.TrimSpace(string(body)))
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
