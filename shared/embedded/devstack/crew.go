package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"diehard/shared/embedded"
)

// stopPatience is above the programs' own SHUTDOWN_TIMEOUT.
func stopPatience() time.Duration {
	own, err := time.ParseDuration(os.Getenv("SHUTDOWN_TIMEOUT"))
	if err != nil {
		own = 30 * time.Second
	}
	return own + 15*time.Second
}

// crew runs Die Hard's programs with their output, prefixed, on out.
type crew struct {
	out       io.Writer
	environ   []string
	stateFile string // tells a later run what a killed one left behind

	mu      sync.Mutex // guards out, members and the state file
	members []*member  // those that run, or did a moment ago
}

func newCrew(out io.Writer) (*crew, error) {
	dir, err := embedded.DevDir()
	return &crew{out: out, stateFile: filepath.Join(dir, "run.json")}, err
}

// member is a running program.
type member struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended, with err
	err  error
}

// start runs a program in a process group of its own, which Ctrl-C in the
// terminal does not reach: programs are stopped in order.
func (c *crew) start(name, program string, args ...string) (*member, error) {
	cmd := exec.Command(program, args...) //nolint:noctx // stop ends it in order
	cmd.Env = c.environ
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output := &prefixer{crew: c, prefix: fmt.Sprintf("%-8s | ", name)}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	m := &member{name: name, cmd: cmd, done: make(chan struct{})}
	go func() {
		m.err = cmd.Wait()
		output.flush()
		close(m.done)
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = append(c.running(), m)
	return m, c.save()
}

// runToEnd runs a program that does one thing.
func (c *crew) runToEnd(ctx context.Context, name, program string, args ...string) error {
	m, err := c.start(name, program, args...)
	if err != nil {
		return err
	}
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), c.stop(ctx, name))
	}
}

// stop ends a program in order, and by force when the patience or hurry is over.
// A program that was not started or has ended is stopped already.
func (c *crew) stop(hurry context.Context, name string) error {
	c.mu.Lock()
	running := c.running()
	c.mu.Unlock()
	for _, m := range running {
		if m.name != name {
			continue
		}
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-m.done:
			say("%s is stopped", name)
			continue
		case <-hurry.Done():
		case <-time.After(stopPatience()):
		}
		_ = m.cmd.Process.Kill()
		<-m.done
		say("%s did not end in time: killed", name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.save()
}

// running returns the members that run; c.mu is held.
func (c *crew) running() []*member {
	return slices.DeleteFunc(slices.Clone(c.members), func(m *member) bool {
		select {
		case <-m.done:
			return true
		default:
			return false
		}
	})
}

// leftOver is a program in the state file.
type leftOver struct {
	PID     int    `json:"pid"`
	Program string `json:"program"`
}

// save writes the state file; c.mu is held.
func (c *crew) save() error {
	running := []leftOver{}
	for _, m := range c.running() {
		running = append(running, leftOver{m.cmd.Process.Pid, m.cmd.Path})
	}
	encoded, err := json.Marshal(running)
	if err != nil {
		return err
	}
	return os.WriteFile(c.stateFile, encoded, 0o644) //nolint:gosec // nothing secret
}

func readState(path string) ([]leftOver, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var left []leftOver
	return left, json.Unmarshal(raw, &left)
}

// stopLeftOvers ends the programs of a devstack that was killed.
func (c *crew) stopLeftOvers(ctx context.Context) error {
	left, err := readState(c.stateFile)
	if err != nil {
		say("ignoring %s: %v", c.stateFile, err)
		return nil
	}
	for _, program := range left {
		ended, err := embedded.EndProcess(ctx, program.PID, program.Program, stopPatience())
		if err != nil {
			return err
		}
		if ended {
			say("stopped the %s (process %d) of a run that was killed", filepath.Base(program.Program), program.PID)
		}
	}
	return nil
}

// prefixer writes whole lines, each with its prefix.
type prefixer struct {
	crew    *crew
	prefix  string
	partial []byte
}

func (p *prefixer) Write(data []byte) (int, error) {
	p.partial = append(p.partial, data...)
	end := bytes.LastIndexByte(p.partial, '\n') + 1
	var text strings.Builder
	for line := range bytes.Lines(p.partial[:end]) {
		text.WriteString(p.prefix)
		text.Write(line)
	}
	p.partial = append(p.partial[:0], p.partial[end:]...)
	p.crew.mu.Lock()
	defer p.crew.mu.Unlock()
	_, err := io.WriteString(p.crew.out, text.String())
	return len(data), err
}

// flush ends a last line that has no end.
func (p *prefixer) flush() {
	if len(p.partial) > 0 {
		_, _ = p.Write([]byte("\n"))
	}
}
