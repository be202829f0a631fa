// Command streamer follows the outbox through a logical replication slot and
// writes its events to ClickHouse, exactly once.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"diehard/shared/shutdown"
	"diehard/shared/telemetry"
)

func main() {
	ctx, stop := shutdown.Context(context.Background())
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		code, silent := errors.AsType[exitCode](err)
		if !silent {
			code = 1
			telemetry.PrintFatal(os.Stderr, "streamer", err)
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
		Version:       telemetry.Build().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          start.RunE,
	}
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	cmd.AddCommand(start, statusCommand(), doctorCommand(), migrateCommand(), uninstallCommand(), slotCommand(), deadLetterCommand(),
		bookmarkCommand(), replayCommand(), verifyCommand(), eventsCommand(), healthcheckCommand())
	return cmd
}
