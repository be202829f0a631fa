package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

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

// runAll starts the engines, migrates, runs streamer and api until ctx ends or
// one of them does, and stops everything in the order of the data's way.
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
	stack, err := startEngines(ctx)
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
	dir, err := embedded.DevDir()
	if err != nil {
		return nil, err
	}
	lock, err := embedded.TryLock(filepath.Join(dir, "run.lock"), true)
	if err == nil && lock == nil {
		err = errors.New("make run is already running in this checkout: stop it with Ctrl-C in its terminal")
	}
	return lock, err
}

// runPrograms returns nil when ctx ended, and an error when a program did.
func runPrograms(ctx context.Context, crew *crew, stack *embedded.Stack) error {
	bin, err := programDir()
	if err != nil {
		return err
	}
	if err := crew.runToEnd(ctx, "migrate", filepath.Join(bin, "streamer"), "migrate", "up"); err != nil {
		return stopped(ctx, fmt.Errorf("the migrations failed, see above: %w", err))
	}
	streamer, err := crew.start("streamer", filepath.Join(bin, "streamer"), "run")
	if err != nil {
		return err
	}
	api, err := crew.start("api", filepath.Join(bin, "api"))
	if err != nil {
		return err
	}
	ready := make(chan error, 1)
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ready <- waitUntilReady(waiting, apiAddress(), streamerAddress()) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-streamer.done:
			return streamer.ended()
		case <-api.done:
			return api.ended()
		case err := <-ready:
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				say("not ready yet, going on: %v", err)
			}
			printWhatToTry(os.Stdout, stack)
		}
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
// is, and the engines last.
func stopAll(hurry context.Context, crew *crew, stack *embedded.Stack) error {
	errs := []error{crew.stop(hurry, "api"), crew.stop(hurry, "streamer")}
	if stack != nil && stack.ClickHouse != nil {
		errs = append(errs, stopEngine(hurry, stack.ClickHouse))
	}
	if stack != nil && stack.Postgres != nil {
		errs = append(errs, stopEngine(hurry, stack.Postgres))
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
