package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"diehard/shared/embedded"
)

func upCommand() *cobra.Command {
	var test bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the engines in the background",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if test {
				_, err := embedded.StartTestStack(cmd.Context(), say)
				return err
			}
			return up(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&test, "test", false, "the engines that tests share, instead of those for development")
	return cmd
}

// up starts what does not run. The engines of a make run stay as they are: they
// are the run's, which stops them at its end.
func up(ctx context.Context) error {
	only, err := tryRun()
	if err != nil {
		return err
	}
	if only == nil {
		say("make run is running: its engines stay as they are, and end with it")
	} else {
		only.Unlock()
	}
	_, err = startEngines(ctx, only == nil)
	return err
}

// engineOptions are for what the environment does not name a server for; both
// fields are nil if it names both.
func engineOptions() (embedded.StackOptions, error) {
	_, err := readDatabases()
	opts, errPorts := embedded.DevOptions(say)
	if os.Getenv("DATABASE_URL") != "" {
		opts.Postgres = nil
	}
	if os.Getenv("CLICKHOUSE_HOST") != "" {
		opts.ClickHouse = nil
	}
	return opts, errors.Join(err, errPorts)
}

// startEngines starts them, and keeps those that run with other options as they
// are if adopt is set.
func startEngines(ctx context.Context, adopt bool) (*embedded.Stack, error) {
	opts, err := engineOptions()
	if err != nil {
		return nil, err
	}
	if opts.Postgres == nil {
		say("PostgreSQL: the server of DATABASE_URL")
	} else {
		opts.Postgres.Adopt = adopt
	}
	if opts.ClickHouse == nil {
		say("ClickHouse: the server of CLICKHOUSE_HOST")
	} else {
		opts.ClickHouse.Adopt = adopt
		if os.Getenv("CLICKHOUSE_PORT") != "" {
			say("CLICKHOUSE_PORT says nothing without CLICKHOUSE_HOST; the port of the embedded ClickHouse is EMBEDDED_CLICKHOUSE_PORT")
		}
	}
	began := time.Now()
	stack, err := embedded.StartStack(ctx, opts)
	if err != nil {
		return stack, err
	}
	took := time.Since(began).Round(10 * time.Millisecond)
	if p := stack.Postgres; p != nil {
		say("%s is up at %s (process %d, %s)", p.Name(), p.URL(embedded.DevDatabase), p.PID(), took)
	}
	if c := stack.ClickHouse; c != nil {
		say("%s is up at %s:%d (process %d, %s)", c.Name(), embedded.Host, c.Port(), c.PID(), took)
	}
	return stack, nil
}

func downCommand() *cobra.Command {
	var testOnly bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the engines, those for tests too; data of development is kept",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !testOnly {
				if err := stopDevelopment(cmd.Context()); err != nil {
					return err
				}
			}
			return stopTests(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&testOnly, "test", false, "only the engines that tests share")
	return cmd
}

// stopDevelopment stops the engines, and first what a killed make run left.
func stopDevelopment(ctx context.Context) error {
	only, err := onlyRun()
	if err != nil {
		return err
	}
	defer only.Unlock()
	crew, err := newCrew(os.Stdout)
	if err != nil {
		return err
	}
	if err := crew.stopLeftOvers(ctx); err != nil {
		return err
	}
	dir, err := embedded.DevDir()
	if err != nil {
		return err
	}
	stopped, err := embedded.StopEngines(ctx, dir)
	report(stopped)
	return err
}

func stopTests(ctx context.Context) error {
	stopped, used, err := embedded.StopTestStack(ctx)
	report(stopped)
	if used {
		say("tests are running: their engines stay")
	}
	return err
}

func report(stopped []embedded.Engine) {
	for _, engine := range stopped {
		say("%s (process %d) is stopped", engine.Name(), engine.PID())
	}
}

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show which engines run",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dev, err := embedded.DevDir()
			if err != nil {
				return err
			}
			test, err := embedded.TestDir()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			for _, group := range []struct{ name, dir string }{{"development", dev}, {"tests", test}} {
				engines := embedded.FindEngines(group.dir)
				if len(engines) == 0 {
					fmt.Fprintf(out, "%s: no engine runs\n", group.name)
				}
				for _, engine := range engines {
					fmt.Fprintf(out, "%s: %s at %s:%d, process %d\n",
						group.name, engine.Name(), embedded.Host, engine.Port(), engine.PID())
				}
			}
			return nil
		},
	}
}
