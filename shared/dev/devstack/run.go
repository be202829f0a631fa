package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"diehard/shared/dev/embedded"
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

// runAll starts the engines, migrates, and runs streamer and api until ctx is
// done. Then it stops everything, producers first.
func runAll(ctx context.Context) error {
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
	stack, err := startEngines(ctx, false)
	if err == nil {
		programs.environ = environFor(stack)
		err = runPrograms(ctx, programs, stack)
	}
	// A second Ctrl-C kills what has not stopped.
	forceStop, cancel := onSignal(context.WithoutCancel(ctx))
	defer cancel()
	return errors.Join(err, stopAll(forceStop, programs, stack))
}

// lockRun prevents a second make run, and make down while a run needs the engines.
func lockRun() (*embedded.FileLock, error) {
	lock, err := tryLockRun()
	if err == nil && lock == nil {
		err = errors.New("make run is already running in this checkout: stop it with Ctrl-C in its terminal")
	}
	return lock, err
}

// tryLockRun returns nil if another make run holds the lock.
func tryLockRun() (*embedded.FileLock, error) {
	dir, err := embedded.DevDir()
	if err != nil {
		return nil, err
	}
	return embedded.TryLock(filepath.Join(dir, "run.lock"), true)
}

// runPrograms returns nil when ctx is done, and an error when a program refuses to run.
func runPrograms(ctx context.Context, programs *supervisor, stack *embedded.Stack) error {
	bin, err := programDir()
	if err != nil {
		return err
	}
	for _, program := range []string{"streamer", "api"} { // the outbox first
		if err := programs.runToEnd(ctx, "migrate", filepath.Join(bin, program), "migrate", "up"); err != nil {
			return stopped(ctx, fmt.Errorf("the migrations failed, see above: %w", err))
		}
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return programs.superviseForever(ctx, "streamer", filepath.Join(bin, "streamer"), "run") })
	all.Go(func() error { return programs.superviseForever(ctx, "api", filepath.Join(bin, "api")) })
	started := *stack
	all.Go(func() error { welcome(ctx, &started); return nil })
	all.Go(func() error { return superviseEngines(ctx, stack) })
	return all.Wait()
}

// welcome waits until the programs are ready and prints what to try.
func welcome(ctx context.Context, stack *embedded.Stack) {
	if err := waitUntilReady(ctx, apiAddress(), streamerAddress()); err != nil && ctx.Err() == nil {
		say("not ready yet: %v", err)
	}
	if ctx.Err() == nil {
		printWhatToTry(os.Stdout, stack)
	}
}

// stopped drops an error that the user caused by stopping the run.
func stopped(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return err
	}
}

// programDir is the folder of devstack, where make build puts api and streamer too.
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

// stopAll stops the producer first, so that the streamer can deliver what is left,
// and the engines last: those running on the data folders of stack, even if
// another program has restarted them.
func stopAll(forceStop context.Context, programs *supervisor, stack *embedded.Stack) error {
	errs := []error{programs.stop(forceStop, "api"), programs.stop(forceStop, "streamer")}
	if stack != nil && stack.ClickHouse != nil {
		if c := embedded.FindClickHouse(stack.ClickHouse.DataDir()); c != nil {
			errs = append(errs, stopEngine(forceStop, c))
		}
	}
	if stack != nil && stack.Postgres != nil {
		if p := embedded.FindPostgres(stack.Postgres.DataDir()); p != nil {
			errs = append(errs, stopEngine(forceStop, p))
		}
	}
	return errors.Join(errs...)
}

func stopEngine(forceStop context.Context, engine embedded.Engine) error {
	err := engine.Stop(forceStop)
	if err == nil {
		say("%s is stopped", engine.Name())
	}
	return err
}
