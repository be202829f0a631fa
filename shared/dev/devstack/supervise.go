package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"diehard/shared/dev/embedded"
)

const (
	// earlyExit is how soon after its start a program exits that refuses to run.
	// Starting it again does not help.
	earlyExit = 10 * time.Second
	// The delay before a restart doubles each time, until a program has run for
	// stableAfter.
	minRestartDelay = 500 * time.Millisecond
	maxRestartDelay = 10 * time.Second
	stableAfter     = time.Minute

	checkInterval = time.Second
)

// restartDelay grows with every restart.
type restartDelay time.Duration

func (d *restartDelay) next(lived time.Duration) time.Duration {
	if lived > stableAfter {
		*d = 0
	}
	*d = restartDelay(min(max(2*time.Duration(*d), minRestartDelay), maxRestartDelay))
	return time.Duration(*d)
}

// superviseForever starts a program, and starts it again whenever it ends, until
// ctx is done; the program then still runs. The error is an early exit after the
// first start.
func (s *supervisor) superviseForever(ctx context.Context, name, program string, args ...string) error {
	var delay restartDelay
	for first := true; ; first = false {
		began := time.Now()
		p, err := s.start(name, program, args...)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.done:
		}
		lived := time.Since(began)
		if first && lived < earlyExit && p.err != nil && !p.killed() {
			return fmt.Errorf("%s does not start (%w), see its last lines above", name, p.err)
		}
		wait := delay.next(lived)
		say("%s %s: restarting it in %s", name, p.how(), wait)
		if !slept(ctx, wait) {
			return nil
		}
	}
}

// killed reports whether a signal ended the program.
func (p *process) killed() bool {
	exit, ok := errors.AsType[*exec.ExitError](p.err)
	if !ok {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

// how describes how a program ended that should be running.
func (p *process) how() string {
	switch {
	case p.killed():
		return fmt.Sprintf("was killed (%v)", p.err)
	case p.err != nil:
		return fmt.Sprintf("ended (%v), see its last lines above", p.err)
	default:
		return "ended"
	}
}

// slept waits and reports false if ctx ended first.
func slept(ctx context.Context, wait time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// superviseEngines restarts the engines of stack when they have ended, until ctx is
// done. An engine that another program has restarted is adopted.
func superviseEngines(ctx context.Context, stack *embedded.Stack) error {
	opts, err := engineOptions()
	if err != nil {
		return err
	}
	var delay restartDelay
	for began := time.Now(); slept(ctx, checkInterval); {
		var ended embedded.StackOptions
		var names []string
		if p := stack.Postgres; p != nil && !p.Alive() {
			ended.Postgres, names = opts.Postgres, append(names, p.Name())
		}
		if c := stack.ClickHouse; c != nil && !c.Alive() {
			ended.ClickHouse, names = opts.ClickHouse, append(names, c.Name())
		}
		if len(names) == 0 {
			continue
		}
		wait := delay.next(time.Since(began))
		say("%s has ended: restarting it in %s", strings.Join(names, " and "), wait)
		if !slept(ctx, wait) {
			break
		}
		began = time.Now()
		if err := restartEngines(ctx, stack, ended); err != nil && ctx.Err() == nil {
			say("%v", err)
		}
	}
	return nil
}

// restartEngines starts engines and puts them into stack.
func restartEngines(ctx context.Context, stack *embedded.Stack, ended embedded.StackOptions) error {
	now, err := embedded.StartStack(ctx, ended)
	if err != nil {
		return err // the next attempt adopts what did start
	}
	if now.Postgres != nil {
		stack.Postgres = now.Postgres
		say("%s is up again (process %d)", now.Postgres.Name(), now.Postgres.PID())
	}
	if now.ClickHouse != nil {
		stack.ClickHouse = now.ClickHouse
		say("%s is up again (process %d)", now.ClickHouse.Name(), now.ClickHouse.PID())
	}
	return nil
}
