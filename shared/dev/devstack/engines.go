package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"diehard/shared/dev/embedded"
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
	cmd.Flags().BoolVar(&test, "test", false, "the engines shared by tests instead of the development engines")
	return cmd
}

// up starts the engines that do not run. Those of a make run keep their options:
// the run stops them when it ends.
func up(ctx context.Context) error {
	lock, err := tryLockRun()
	if err != nil {
		return err
	}
	if lock == nil {
		say("make run is running: its engines keep their options and stop with it")
	} else {
		lock.Unlock()
	}
	_, err = startEngines(ctx, lock == nil)
	return err
}

// engineOptions leaves out an engine whose server is set by the environment.
func engineOptions() (embedded.StackOptions, error) {
	_, err := readDatabases()
	opts, errPorts := embedded.DevOptions(say)
	postgres, errPostgres := externalPostgres()
	if postgres {
		opts.Postgres = nil
	}
	clickhouse, errClickHouse := externalClickHouse()
	if clickhouse {
		opts.ClickHouse = nil
	}
	return opts, errors.Join(err, errPorts, errPostgres, errClickHouse)
}

// startEngines starts the engines. With adopt, it keeps an engine that runs with
// other options.
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
		if os.Getenv("CLICKHOUSE_PORT") != "" && os.Getenv("CLICKHOUSE_HOST") == "" {
			say("CLICKHOUSE_PORT has no effect without CLICKHOUSE_HOST; set EMBEDDED_CLICKHOUSE_PORT for the embedded ClickHouse")
		}
	}
	began := time.Now()
	stack, err := embedded.StartStack(ctx, opts)
	if err != nil {
		return stack, err
	}
	took := time.Since(began).Round(10 * time.Millisecond)
	if p := stack.Postgres; p != nil {
		say("%s is up at %s:%d, database %s (process %d, %s)", p.Name(), embedded.Host, p.Port(), embedded.DevDatabase, p.PID(), took)
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
		Short: "Stop the engines, including those of the tests; the development data stays",
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
	cmd.Flags().BoolVar(&testOnly, "test", false, "only the engines shared by tests")
	return cmd
}

// stopDevelopment stops the orphans of a killed make run, then the engines.
func stopDevelopment(ctx context.Context) error {
	lock, err := lockRun()
	if err != nil {
		return err
	}
	defer lock.Unlock()
	programs, err := newSupervisor(os.Stdout)
	if err != nil {
		return err
	}
	if err := programs.stopOrphans(ctx); err != nil {
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
		say("tests are running: their engines keep running")
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
