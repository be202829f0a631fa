// Command api creates users and publishes events over HTTP. The event of a new
// user is written to the outbox in the same transaction.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"diehard/shared/shutdown"
	"diehard/shared/telemetry"
)

// Exit codes: a failure, or arguments or settings that are wrong.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := shutdown.Context(context.Background())
	defer stop()
	if err := execute(ctx, os.Args[1:]); err != nil {
		telemetry.PrintFatal(os.Stderr, "api", err)
		os.Exit(exitCode(err)) //nolint:gocritic // stop only releases the signals
	}
}

// execute runs the command that args name. Errors from before it ran are usage errors.
func execute(ctx context.Context, args []string) error {
	cmd, ran := root(), false
	cmd.PersistentPreRun = func(*cobra.Command, []string) { ran = true }
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err != nil && !ran {
		return usageError{err}
	}
	return err
}

func root() *cobra.Command {
	run := runCommand()
	cmd := &cobra.Command{
		Use:           "api",
		Short:         "Users and events over HTTP, into the PostgreSQL outbox",
		Long:          "Without a command, api runs. It is configured by the environment; see .env.example.",
		Version:       telemetry.Build().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          run.RunE,
	}
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	cmd.AddCommand(run, migrateCommand(), keyCommand(), healthcheckCommand())
	return cmd
}

// usageError is an error in the arguments or settings.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitCode(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailure
}
