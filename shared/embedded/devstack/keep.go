package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"diehard/shared/embedded"
)

const (
	// atOnce is how soon a program ends that refuses to run: started again, it would again.
	atOnce = 10 * time.Second
	// The pause before a program is started again doubles each time, until it
	// has run for a while.
	firstPause   = 500 * time.Millisecond
	longestPause = 10 * time.Second
	aWhile       = time.Minute

	lookEvery = time.Second
)

// pause grows with every end that follows another too soon.
type pause time.Duration

func (p *pause) next(lived time.Duration) time.Duration {
	if lived > aWhile {
		*p = 0
	}
	*p = pause(min(max(2*time.Duration(*p), firstPause), longestPause))
	return time.Duration(*p)
}

// keep runs a program until ctx ends, which does not end the program. Killed or
// ended, it is started again; if its first start fails at once, that is the error.
func (c *crew) keep(ctx context.Context, name, program string, args ...string) error {
	var rest pause
	for first := true; ; first = false {
		began := time.Now()
		m, err := c.start(name, program, args...)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.done:
		}
		lived := time.Since(began)
		if first && lived < atOnce && m.err != nil && !m.killed() {
			return fmt.Errorf("%s does not start (%w), see its last lines above", name, m.err)
		}
		wait := rest.next(lived)
		say("%s %s: starting it again in %s", name, m.how(), wait)
		if !slept(ctx, wait) {
			return nil
		}
	}
}

// killed reports whether a signal ended the program.
func (m *member) killed() bool {
	exit, ok := errors.AsType[*exec.ExitError](m.err)
	if !ok {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

// how says how a program ended that should have gone on.
func (m *member) how() string {
	switch {
	case m.killed():
		return fmt.Sprintf("was killed (%v)", m.err)
	case m.err != nil:
		return fmt.Sprintf("ended (%v), see its last lines above", m.err)
	default:
		return "ended"
	}
}

// slept reports whether ctx lasted as long.
func slept(ctx context.Context, wait time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// keepEngines starts the engines of stack again when they are gone, until ctx
// ends. If others did so before, theirs is the one to look after.
func keepEngines(ctx context.Context, stack *embedded.Stack) error {
	opts, err := engineOptions()
	if err != nil {
		return err
	}
	var rest pause
	for began := time.Now(); slept(ctx, lookEvery); {
		var gone embedded.StackOptions
		var names []string
		if p := stack.Postgres; p != nil && !p.Alive() {
			gone.Postgres, names = opts.Postgres, append(names, p.Name())
		}
		if c := stack.ClickHouse; c != nil && !c.Alive() {
			gone.ClickHouse, names = opts.ClickHouse, append(names, c.Name())
		}
		if len(names) == 0 {
			continue
		}
		wait := rest.next(time.Since(began))
		say("%s is gone: starting it again in %s", strings.Join(names, " and "), wait)
		if !slept(ctx, wait) {
			break
		}
		began = time.Now()
		if err := revive(ctx, stack, gone); err != nil && ctx.Err() == nil {
			say("%v", err)
		}
	}
	return nil
}

// revive puts the engines that it starts into stack.
func revive(ctx context.Context, stack *embedded.Stack, gone embedded.StackOptions) error {
	now, err := embedded.StartStack(ctx, gone)
	if err != nil {
		return err // what did start is found by the next try
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
