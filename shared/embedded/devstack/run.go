package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"diehard/shared/embedded"
)

func runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Start everything in the foreground; Ctrl-C stops it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAll(cmd.Context())
		},
	}
}

// runAll starts the engines, migrates, keeps streamer and api running until ctx
// ends, and stops everything in the order of the data's way.
func runAll(ctx context.Context) error {
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
	stack, err := startEngines(ctx, false)
	if err == nil {
		crew.environ = environFor(stack)
		err = runPrograms(ctx, crew, stack)
	}
	// A second Ctrl-C kills what does not end.
	hurry, cancel := onSignal(context.WithoutCancel(ctx))
	defer cancel()
	return errors.Join(err, stopAll(hurry, crew, stack))
}

// onlyRun keeps a second make run from fighting the first over ports, and make
// down from pulling the engines away under it.
func onlyRun() (*embedded.FileLock, error) {
	lock, err := tryRun()
	if err == nil && lock == nil {
		err = errors.New("make run is already running in this checkout: stop it with Ctrl-C in its terminal")
	}
	return lock, err
}

// tryRun returns nil if a make run is running.
func tryRun() (*embedded.FileLock, error) {
	dir, err := embedded.DevDir()
	if err != nil {
		return nil, err
	}
	return embedded.TryLock(filepath.Join(dir, "run.lock"), true)
}

// runPrograms returns nil when ctx ended, and an error when a program refuses to run.
func runPrograms(ctx context.Context, crew *crew, stack *embedded.Stack) error {
	bin, err := programDir()
	if err != nil {
		return err
	}
	if err := crew.runToEnd(ctx, "migrate", filepath.Join(bin, "streamer"), "migrate", "up"); err != nil {
		return stopped(ctx, fmt.Errorf("the migrations failed, see above: %w", err))
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return crew.keep(ctx, "streamer", filepath.Join(bin, "streamer"), "run") })
	all.Go(func() error { return crew.keep(ctx, "api", filepath.Join(bin, "api")) })
	begun := *stack
	all.Go(func() error { welcome(ctx, &begun); return nil })
	all.Go(func() error { return keepEngines(ctx, stack) })
	return all.Wait()
}

// welcome says what to try once there is something to try it on.
func welcome(ctx context.Context, stack *embedded.Stack) {
	if err := waitUntilReady(ctx, apiAddress(), streamerAddress()); err != nil && ctx.Err() == nil {
		say("not ready yet, going on: %v", err)
	}
	if ctx.Err() == nil {
		printWhatToTry(os.Stdout, stack)
	}
}

// stopped turns an error into nil if the user asked to stop.
func stopped(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return err
	}
}

// programDir is where make build puts api and streamer: beside devstack.
func programDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(self)
	for _, name := range []string{"api", "streamer"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("%s is not built: run make build", filepath.Join(dir, name))
		}
	}
	return dir, nil
}

// stopAll stops the producer first, so that the streamer can deliver what there
// is, and the engines last: those that run now on the data of stack, whoever
// started them.
func stopAll(hurry context.Context, crew *crew, stack *embedded.Stack) error {
	errs := []error{crew.stop(hurry, "api"), crew.stop(hurry, "streamer")}
	if stack != nil && stack.ClickHouse != nil {
		if c := embedded.FindClickHouse(stack.ClickHouse.DataDir()); c != nil {
			errs = append(errs, stopEngine(hurry, c))
		}
	}
	if stack != nil && stack.Postgres != nil {
		if p := embedded.FindPostgres(stack.Postgres.DataDir()); p != nil {
			errs = append(errs, stopEngine(hurry, p))
		}
	}
	return errors.Join(errs...)
}

func stopEngine(hurry context.Context, engine embedded.Engine) error {
	err := engine.Stop(hurry)
	if err == nil {
		say("%s is stopped", engine.Name())
	}
	return err
}
