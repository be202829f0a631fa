package embedded

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is an engine: our child, or one found running.
type process struct {
	pid  int
	done chan struct{} // closed once our child was reaped; nil if not our child
}

// spawn starts cmd in a session of its own, so that Ctrl-C in our terminal does
// not reach it, with its output appended to logFile.
func spawn(cmd *exec.Cmd, logFile string) (*process, error) {
	log, err := openLog(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // the log file says how it ended
		close(p.done)
	}()
	return p, nil
}

// maxLogBytes is the size above which a log file is renamed at the next start.
const maxLogBytes = 16 << 20

func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLogBytes {
		_ = os.Rename(path, path+".old")
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

func (p *process) alive() bool {
	if p == nil {
		return false
	}
	if p.done == nil {
		return pidAlive(p.pid)
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop sends one signal after the other, waits up to timeout after each, and kills
// the process if it still runs. When ctx ends, the process is killed.
func (p *process) stop(ctx context.Context, timeout time.Duration, signals ...syscall.Signal) error {
	for _, sig := range signals {
		if !p.alive() {
			return nil
		}
		_ = syscall.Kill(p.pid, sig)
		_ = syscall.Kill(p.pid, syscall.SIGCONT) // a stopped process handles no signal
		if p.gone(ctx, timeout) {
			return nil
		}
	}
	return p.kill(ctx)
}

// killTimeout is how long the kernel may take to end a killed process.
const killTimeout = 2 * time.Minute

// kill sends SIGKILL and waits until the process has ended, even if ctx is done.
func (p *process) kill(ctx context.Context) error {
	if !p.alive() {
		return nil
	}
	_ = syscall.Kill(p.pid, syscall.SIGKILL)
	if !p.gone(context.WithoutCancel(ctx), killTimeout) {
		return fmt.Errorf("process %d does not end: kill it by hand (kill -9 %d)", p.pid, p.pid)
	}
	return nil
}

// gone waits up to timeout and reports whether the process has ended.
func (p *process) gone(ctx context.Context, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for p.alive() {
		select {
		case <-ctx.Done():
			return !p.alive()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
}

// EndProcess sends SIGTERM to pid, and SIGKILL after timeout, if it still runs
// program: the kernel may have given the id to another process. It reports whether
// there was such a process.
func EndProcess(ctx context.Context, pid int, program string, timeout time.Duration) (bool, error) {
	if !pidAlive(pid) || !strings.Contains(commandLine(pid), program) {
		return false, nil
	}
	p := &process{pid: pid}
	return true, p.stop(ctx, timeout, syscall.SIGTERM)
}

// pidAlive reports whether pid runs. A zombie does not: in a container, it may
// never be reaped.
func pidAlive(pid int) bool {
	if pid <= 0 {
		return false
	}
	if err := syscall.Kill(pid, 0); err != nil && err != syscall.EPERM {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true // no /proc here
	}
	// "pid (name) state …", where the name may hold anything.
	_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	return !bytes.HasPrefix(rest, []byte("Z"))
}

// commandLine returns the command that pid runs, "" if that cannot be found out.
func commandLine(pid int) string {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err == nil {
		return strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " "))
	}
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output() //nolint:noctx // answers at once
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// logTail returns what was appended to the log at path since offset, at most
// its last 2 KB.
func logTail(path string, offset int64) string {
	raw, err := os.ReadFile(path)
	if err != nil || int64(len(raw)) < offset {
		return ""
	}
	raw = raw[offset:]
	if len(raw) > 2048 {
		raw = raw[len(raw)-2048:]
	}
	return strings.TrimSpace(string(raw))
}
