// Package shutdown stops a program on SIGINT and SIGTERM.
package shutdown

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// ExitInterrupted is the exit code after a second signal: 128 + SIGINT.
const ExitInterrupted = 130

// Context returns a context that ends with the first SIGINT or SIGTERM; its
// cause names the signal. A second one exits the process at once with
// [ExitInterrupted]. stop releases the signals; it does not wait.
func Context(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	stopped := make(chan struct{})
	go func() {
		select {
		case got := <-signals:
			cancel(fmt.Errorf("%w: %s", context.Canceled, got))
		case <-stopped:
			return
		}
		select {
		case <-signals:
			os.Exit(ExitInterrupted) //nolint:revive // deep-exit is what a second signal asks for
		case <-stopped:
		}
	}()
	return ctx, sync.OnceFunc(func() {
		signal.Stop(signals)
		cancel(context.Canceled)
		close(stopped)
	})
}
