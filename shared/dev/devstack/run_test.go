package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// installation is what make run works on, with directories and ports of its own.
type installation struct {
	bin, dev string
	api      string
	environ  []string
}

func install(t *testing.T) *installation {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	engines, err := embedded.EnginesDir()
	require.NoError(t, err)
	i := &installation{bin: t.TempDir(), api: testenv.FreeAddress(t)}
	i.dev, err = embedded.PrivateDir()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, embedded.RemovePrivate(i.dev)) })
	for name, pkg := range map[string]string{"api": "./api", "streamer": "./streamer", "devstack": "./shared/dev/devstack"} {
		require.NoError(t, embedded.Build(t.Context(), root, pkg, filepath.Join(i.bin, name)))
	}
	i.environ = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"DIEHARD_DEV_DIR=" + i.dev, "DIEHARD_ENGINES_DIR=" + engines,
		"EMBEDDED_POSTGRES_VERSION=" + embedded.PostgresVersion(),
		"EMBEDDED_POSTGRES_PORT=" + freePort(t), "EMBEDDED_CLICKHOUSE_PORT=" + freePort(t),
		"API_ADDR=" + i.api, "STREAMER_ADDR=" + testenv.FreeAddress(t),
	}
	return i
}

func freePort(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(testenv.FreeAddress(t))
	require.NoError(t, err)
	return port
}

func (i *installation) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(i.bin, "devstack"), args...)
	cmd.Env = i.environ
	return cmd
}

// session is a devstack run in its terminal.
type session struct {
	cmd *exec.Cmd

	mu     sync.Mutex
	output strings.Builder
	closed chan struct{}
}

func (i *installation) run(t *testing.T) *session {
	t.Helper()
	s := &session{cmd: i.command(t, "run"), closed: make(chan struct{})}
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	s.cmd.Stdout, s.cmd.Stderr = writer, writer
	require.NoError(t, s.cmd.Start())
	require.NoError(t, writer.Close())
	go func() {
		defer close(s.closed)
		defer reader.Close()
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			s.mu.Lock()
			s.output.WriteString(lines.Text() + "\n")
			s.mu.Unlock()
		}
	}()
	return s
}

func (s *session) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.output.String()
}

func (s *session) waitFor(t *testing.T, text string) {
	t.Helper()
	if !assert.Eventually(t, func() bool { return strings.Contains(s.text(), text) }, await.Limit, 20*time.Millisecond) {
		t.Fatalf("%q is not in:\n%s", text, s.text())
	}
}

// end waits for devstack and returns its exit code.
func (s *session) end(t *testing.T) int {
	t.Helper()
	_ = s.cmd.Wait()
	return s.cmd.ProcessState.ExitCode()
}

func (i *installation) createUser(t *testing.T, email string) {
	t.Helper()
	status, content := i.postUser(t, email)
	require.Equal(t, http.StatusCreated, status, content)
}

func (i *installation) postUser(t *testing.T, email string) (status int, content string) {
	t.Helper()
	body := fmt.Sprintf(`{"email":%q,"first_name":"Test","last_name":"User"}`, email)
	answer, err := http.Post("http://"+i.api+"/users", "application/json", strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text)
}

func (i *installation) requireEvents(t *testing.T, want string) {
	t.Helper()
	await.True(t, func() bool {
		out, err := i.command(t, "query", "SELECT count() AS events FROM event_log").CombinedOutput()
		return err == nil && strings.Contains(string(out), "\n"+want+"\n")
	}, "the events are in ClickHouse")
}

// requireEnv evaluates the output of make env in a shell. It suffices for psql and
// the programs, and does not keep make run from starting its own engines.
func (i *installation) requireEnv(t *testing.T) {
	t.Helper()
	script := `set -euo pipefail
		eval "$(` + i.bin + `/devstack env)"
		` + i.bin + `/streamer migrate status > /dev/null
		test "$API_URL" = "http://` + i.api + `" -a -n "$STREAMER_URL$CLICKHOUSE_PASSWORD$CLICKHOUSE_PORT"
		` + i.bin + `/devstack up
		if command -v psql > /dev/null; then psql -XAtc "SELECT count(*) FROM outbox"; ` + i.bin + `/devstack psql -XAtc "SELECT current_user"; fi`
	shell := exec.CommandContext(t.Context(), "bash", "-c", script)
	shell.Env = i.environ
	out, err := shell.CombinedOutput()
	require.NoError(t, err, string(out))
	assert.NotContains(t, string(out), "the server of DATABASE_URL")
	if _, err := exec.LookPath("psql"); err == nil {
		assert.True(t, strings.HasSuffix(string(out), "\n1\npostgres\n"), string(out))
	}
}

// TestRun walks through what a new user sees, and through crashes.
func TestRun(t *testing.T) {
	t.Parallel()
	i := install(t)

	first := i.run(t)
	first.waitFor(t, "Ready.")
	i.createUser(t, "one@example.com")
	i.requireEvents(t, "1")
	i.requireEnv(t)
	out, err := i.command(t, "run").CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "make run is already running")
	out, err = i.command(t, "down").CombinedOutput()
	require.Error(t, err, "down leaves the engines of a run alone")
	assert.Contains(t, string(out), "make run is already running")
	require.NoError(t, first.cmd.Process.Kill())
	first.end(t)

	second := i.run(t)
	second.waitFor(t, "Ready.")
	assert.Regexp(t, `stopped the streamer \(process \d+\) of a run that was killed`, second.text())
	assert.Regexp(t, `stopped the api \(process \d+\) of a run that was killed`, second.text())
	<-first.closed // its programs held the pipe
	i.createUser(t, "two@example.com")
	i.requireEvents(t, "2")
	require.NoError(t, second.cmd.Process.Signal(syscall.SIGINT))
	assert.Zero(t, second.end(t), second.text())
	<-second.closed
	assert.Regexp(t, `(?s)api is stopped.*streamer is stopped.*ClickHouse is stopped.*PostgreSQL \d+ is stopped`, second.text())
	assert.Empty(t, embedded.FindEngines(i.dev))

	third := i.run(t)
	third.waitFor(t, "Ready.")
	i.requireEvents(t, "2")
	i.killProgram(t, "streamer")
	third.waitFor(t, "streamer was killed (signal: killed): restarting it in 500ms")
	i.createUser(t, "three@example.com")
	i.requireEvents(t, "3")
	i.killProgram(t, "api")
	third.waitFor(t, "api was killed (signal: killed): restarting it in 500ms")
	i.awaitUser(t, "four@example.com")
	i.requireEvents(t, "4")

	// Engines are restarted too: by the run, or by another program.
	require.NoError(t, embedded.FindClickHouse(embedded.ClickHouseDir(i.dev)).Kill())
	third.waitFor(t, "ClickHouse has ended: restarting it")
	third.waitFor(t, "ClickHouse is up again")
	i.awaitUser(t, "five@example.com")
	i.requireEvents(t, "5")
	before := embedded.FindEngines(i.dev)
	require.Len(t, before, 2)
	other := i.command(t, "up")
	other.Env = append(other.Env, "EMBEDDED_CLICKHOUSE_PORT="+freePort(t), "EMBEDDED_POSTGRES_PORT="+freePort(t))
	out, err = other.CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Contains(t, string(out), "make run is running: its engines keep their options")
	for n, engine := range embedded.FindEngines(i.dev) {
		assert.Equal(t, before[n].PID(), engine.PID(), "a run keeps its %s", engine.Name())
	}
	require.NoError(t, embedded.FindPostgres(embedded.PostgresDir(i.dev, embedded.PostgresVersion())).Kill())
	out, err = i.command(t, "up").CombinedOutput()
	require.NoError(t, err, string(out))
	i.awaitUser(t, "six@example.com")
	third.waitFor(t, "PostgreSQL "+embedded.PostgresVersion()+" is up again")
	require.NoError(t, third.cmd.Process.Signal(syscall.SIGINT))
	assert.Zero(t, third.end(t), third.text())
	<-third.closed
	assert.Regexp(t, `(?s)api is stopped.*streamer is stopped.*ClickHouse is stopped.*PostgreSQL \d+ is stopped`, third.text())
	assert.Empty(t, embedded.FindEngines(i.dev), "including those that another program started")

	// A program that cannot start ends the run.
	listener, err := net.Listen("tcp", i.api)
	require.NoError(t, err)
	defer listener.Close()
	fourth := i.run(t)
	assert.Equal(t, 1, fourth.end(t))
	<-fourth.closed
	assert.Contains(t, fourth.text(), "API_ADDR "+i.api)
	assert.Contains(t, fourth.text(), "api does not start (exit status 1), see its last lines above")
	assert.Contains(t, fourth.text(), "streamer is stopped")
	assert.Empty(t, embedded.FindEngines(i.dev))
}

// awaitUser creates a user as soon as the api can.
func (i *installation) awaitUser(t *testing.T, email string) {
	t.Helper()
	await.True(t, func() bool {
		status, _ := i.postUser(t, email)
		return status == http.StatusCreated
	}, "the api takes users again")
}

// killProgram kills a program of a run, found in the run's own records.
func (i *installation) killProgram(t *testing.T, name string) {
	t.Helper()
	running, err := readState(filepath.Join(i.dev, "run.json"))
	require.NoError(t, err)
	for _, program := range running {
		if filepath.Base(program.Program) == name {
			require.NoError(t, syscall.Kill(program.PID, syscall.SIGKILL))
			return
		}
	}
	t.Fatalf("%s is not among %v", name, running)
}

// A run stops the engine that runs at its end, even if another program restarted it.
func TestAnEngineRestartedByAnotherProgramIsStopped(t *testing.T) {
	t.Parallel()
	ours := testenv.StartPostgres(t, embedded.PostgresOptions{})
	require.NoError(t, ours.Kill())
	theirs, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DataDir: ours.DataDir()})
	require.NoError(t, err)
	programs := &supervisor{stateFile: filepath.Join(t.TempDir(), "run.json")}
	require.NoError(t, stopAll(t.Context(), programs, &embedded.Stack{Postgres: ours}))
	assert.Nil(t, embedded.FindPostgres(theirs.DataDir())) // theirs itself notices a moment later
}
