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

	"diehard/shared/dev/embedded"
)

// stopTimeout is longer than the programs' own SHUTDOWN_TIMEOUT.
func stopTimeout() time.Duration {
	own, err := time.ParseDuration(os.Getenv("SHUTDOWN_TIMEOUT"))
	if err != nil {
		own = 30 * time.Second
	}
	return own + 15*time.Second
}

// supervisor runs Die Hard's programs and writes their output, with a prefix, to out.
type supervisor struct {
	out       io.Writer
	environ   []string
	stateFile string // lists the running programs, so that the next run can stop those of a killed one

	mu        sync.Mutex // guards out, processes and the state file
	processes []*process // those running, and those that have just ended
}

func newSupervisor(out io.Writer) (*supervisor, error) {
	dir, err := embedded.DevDir()
	return &supervisor{out: out, stateFile: filepath.Join(dir, "run.json")}, err
}

// process is a program that was started.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed after the program has ended and err is set
	err  error
}

// start runs a program in its own process group, so that Ctrl-C in the terminal
// does not reach it: stop ends the programs one after another.
func (s *supervisor) start(name, program string, args ...string) (*process, error) {
	cmd := exec.Command(program, args...) //nolint:noctx // stop ends it
	cmd.Env = s.environ
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output := &prefixer{supervisor: s, prefix: fmt.Sprintf("%-8s | ", name)}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		output.flush()
		close(p.done)
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processes = append(s.running(), p)
	return p, s.save()
}

// runToEnd starts a program and waits until it has ended.
func (s *supervisor) runToEnd(ctx context.Context, name, program string, args ...string) error {
	p, err := s.start(name, program, args...)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), s.stop(ctx, name))
	}
}

// stop sends SIGTERM to a program, and SIGKILL after stopTimeout or when forceStop
// ends. It does nothing if the program does not run.
func (s *supervisor) stop(forceStop context.Context, name string) error {
	s.mu.Lock()
	running := s.running()
	s.mu.Unlock()
	for _, p := range running {
		if p.name != name {
			continue
		}
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
			say("%s is stopped", name)
			continue
		case <-forceStop.Done():
		case <-time.After(stopTimeout()):
		}
		_ = p.cmd.Process.Kill()
		<-p.done
		say("%s did not stop in time: killed", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.save()
}

// running returns the processes that have not ended; s.mu is held.
func (s *supervisor) running() []*process {
	return slices.DeleteFunc(slices.Clone(s.processes), func(p *process) bool {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	})
}

// orphan is a program listed in the state file.
type orphan struct {
	PID     int    `json:"pid"`
	Program string `json:"program"`
}

// save writes the state file; s.mu is held.
func (s *supervisor) save() error {
	running := []orphan{}
	for _, p := range s.running() {
		running = append(running, orphan{p.cmd.Process.Pid, p.cmd.Path})
	}
	encoded, err := json.Marshal(running)
	if err != nil {
		return err
	}
	return os.WriteFile(s.stateFile, encoded, 0o644) //nolint:gosec // nothing secret
}

func readState(path string) ([]orphan, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var orphans []orphan
	return orphans, json.Unmarshal(raw, &orphans)
}

// stopOrphans stops the programs of a devstack that was killed.
func (s *supervisor) stopOrphans(ctx context.Context) error {
	orphans, err := readState(s.stateFile)
	if err != nil {
		say("ignoring %s: %v", s.stateFile, err)
		return nil
	}
	for _, program := range orphans {
		ended, err := embedded.EndProcess(ctx, program.PID, program.Program, stopTimeout())
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
	supervisor *supervisor
	prefix     string
	partial    []byte
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
	p.supervisor.mu.Lock()
	defer p.supervisor.mu.Unlock()
	_, err := io.WriteString(p.supervisor.out, text.String())
	return len(data), err
}

// flush completes a last line that has no newline.
func (p *prefixer) flush() {
	if len(p.partial) > 0 {
		_, _ = p.Write([]byte("\n"))
	}
}
