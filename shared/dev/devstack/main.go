// Command devstack runs the engines of package embedded, and Die Hard on top of
// them, for development and tests. See make help.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := onSignal(context.Background())
	context.AfterFunc(ctx, stop) // a second signal ends us at once, unless run listens for it
	err := root().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "devstack:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "devstack",
		Short:         "PostgreSQL and ClickHouse for development and tests",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(runCommand(), upCommand(), downCommand(), statusCommand(), envCommand(), psqlCommand(), queryCommand(), streamerCommand(), cleanCommand(), clickhouseServerCommand())
	return cmd
}

// onSignal returns a context that ends with the next SIGINT or SIGTERM, or when the terminal is closed.
func onSignal(parent context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

// say reports progress to the user.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "devstack | "+format+"\n", args...)
}
