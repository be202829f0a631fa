// Command streamer follows the outbox through a logical replication slot and
// lands its events in ClickHouse, exactly once.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"diehard/shared/run"
)

func main() {
	ctx, stop := run.Context(context.Background())
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		code, silent := errors.AsType[exitCode](err)
		if !silent {
			code = 1
			fmt.Fprintln(os.Stderr, "streamer:", err)
		}
		os.Exit(int(code)) //nolint:gocritic // stop only releases the signals
	}
}

func root() *cobra.Command {
	start := profiled(runCommand())
	cmd := &cobra.Command{
		Use:           "streamer",
		Short:         "Events from the PostgreSQL outbox to ClickHouse, exactly once",
		Long:          "Without a command, streamer runs. It is configured by the environment; see .env.example.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          start.RunE,
	}
	cmd.AddCommand(start, statusCommand(), doctorCommand(), migrateCommand(), slotCommand(), deadLetterCommand(),
		bookmarkCommand(), replayCommand(), verifyCommand(), healthcheckCommand())
	return cmd
}
