package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// program is one of the real programs, in a process of its own.
type program struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  *logbook
	done chan struct{}
}

// run starts a program on env, with more environment variables, and kills it
// when the test ends.
func run(t testing.TB, env *testenv.Env, name string, more ...string) *program {
	t.Helper()
	return runArgs(t, env, name, nil, more...)
}

// runArgs is run with arguments.
func runArgs(t testing.TB, env *testenv.Env, name string, args []string, more ...string) *program {
	t.Helper()
	return runPath(t, env, testenv.Build(t, name), args, more...)
}

func runPath(t testing.TB, env *testenv.Env, path string, args []string, more ...string) *program {
	t.Helper()
	p := &program{t: t, log: newLogbook(t), done: make(chan struct{})}
	p.cmd = exec.Command(path, args...)
	p.cmd.Env = append(append(env.Environ(),
		"API_ADDR=127.0.0.1:0", "STREAMER_ADDR=127.0.0.1:0", "LOG_FORMATTER=json",
		"CLICKHOUSE_BATCH_SIZE=500", "CLICKHOUSE_FLUSH_INTERVAL=20ms", "REPLICATION_SENDER_TIMEOUT=3s"), more...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // ProcessState has how it ended
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *program) signal(s syscall.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(s))
}

// kill is kill -9. It waits until the process is gone.
func (p *program) kill() {
	_ = p.cmd.Process.Kill() // it may be gone already
	<-p.done
}

// exit waits until the program ends by itself and returns its exit code.
func (p *program) exit() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(await.Limit):
		require.Fail(p.t, "the program does not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

// says waits for a log line whose message begins so and returns its attributes.
func (p *program) says(message string) map[string]any {
	p.t.Helper()
	var found map[string]any
	await.True(p.t, func() bool {
		for line := range strings.Lines(p.log.text()) {
			var attributes map[string]any
			if json.Unmarshal([]byte(line), &attributes) == nil && strings.HasPrefix(fmt.Sprint(attributes["msg"]), message) {
				found = attributes
			}
		}
		return found != nil
	}, "the program never says %q", message)
	return found
}

var httpAddress = regexp.MustCompile(`http://127\.0\.0\.1:\d+`)

// address is where an api listens.
func (p *program) address() string {
	p.t.Helper()
	address, _ := p.says("api ready")["address"].(string)
	require.Regexp(p.t, httpAddress, address)
	return address
}
