package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/run"
	"diehard/shared/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// program is a running api.
type program struct {
	*exec.Cmd
	address string // http://host:port
}

// start runs the api on a free port and waits until it listens.
func start(t *testing.T, env *testenv.Env) *program {
	t.Helper()
	p := &program{Cmd: exec.CommandContext(t.Context(), testenv.Build(t, "api"))}
	p.Env = append(env.Environ(), "API_ADDR=127.0.0.1:0", "LOG_FORMATTER=json")
	stderr, err := p.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	lines := bufio.NewScanner(stderr)
	require.True(t, lines.Scan(), "the first line of the log")
	var ready struct{ Address string }
	require.NoError(t, json.Unmarshal(lines.Bytes(), &ready), lines.Text())
	p.address = ready.Address
	go func() { _, _ = io.Copy(io.Discard, stderr) }()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
	})
	return p
}

// createUser posts in the background; the answer's status comes on the channel.
func (p *program) createUser(t *testing.T) <-chan int {
	t.Helper()
	status := make(chan int, 1)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.address+"/users",
		strings.NewReader(`{"email":"test@example.com","first_name":"Test","last_name":"User"}`))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	go func() {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Do(request)
		if err != nil {
			status <- 0
			return
		}
		_ = response.Body.Close()
		status <- response.StatusCode
	}()
	return status
}

// lockUsers makes inserts into users wait for the returned transaction.
func lockUsers(t *testing.T, env *testenv.Env) pgx.Tx {
	t.Helper()
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	_, err = tx.Exec(t.Context(), "LOCK TABLE users")
	require.NoError(t, err)
	return tx
}

func awaitBlockedInsert(t *testing.T, env *testenv.Env) {
	t.Helper()
	require.Eventually(t, func() bool {
		var waiting int
		err := env.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND application_name = 'diehard-api' AND wait_event_type = 'Lock'`).Scan(&waiting)
		return err == nil && waiting == 1
	}, 10*time.Second, 10*time.Millisecond)
}

// awaitClosedPort waits until the api takes no new connections.
func (p *program) awaitClosedPort(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(p.address, "http://"))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, 10*time.Second, 10*time.Millisecond)
}

func TestTerminationFinishesRunningRequests(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			p := start(t, env)
			lock := lockUsers(t, env)
			status := p.createUser(t)
			awaitBlockedInsert(t, env)
			require.NoError(t, p.Process.Signal(signal))
			p.awaitClosedPort(t)
			require.NoError(t, lock.Rollback(t.Context()))
			assert.Equal(t, http.StatusCreated, <-status)
			assert.NoError(t, p.Wait())

			var events int
			require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM outbox").Scan(&events))
			assert.Equal(t, 1, events)
		})
	}
}

func TestSecondSignalExitsAtOnce(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := start(t, env)
	lockUsers(t, env)
	status := p.createUser(t)
	awaitBlockedInsert(t, env)
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	p.awaitClosedPort(t)
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	var exit *exec.ExitError
	require.ErrorAs(t, p.Wait(), &exit)
	assert.Equal(t, run.ExitInterrupted, exit.ExitCode())
	assert.Zero(t, <-status)
}

func TestStartsAndAnswersWithoutDatabase(t *testing.T) {
	t.Parallel()
	env := *testenv.New(t)
	env.PostgresURL = "postgres://app@127.0.0.1:1/app"
	p := start(t, &env)
	assert.Equal(t, http.StatusServiceUnavailable, <-p.createUser(t))
}

func TestMistakesStopTheProgramWithOneMessage(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	for name, c := range map[string]struct {
		environ []string
		code    int
		says    []string
	}{
		"settings": {
			[]string{"DATABASE_URL=", "SHUTDOWN_TIMEOUT=soon", "LOG_LEVEL=loud"},
			2,
			[]string{"DATABASE_URL is not set", `SHUTDOWN_TIMEOUT = "soon"`, `LOG_LEVEL = "loud"`},
		},
		"database": {[]string{"DATABASE_URL=postgres://app:hunter2@db:port/app"}, 1, []string{"DATABASE_URL"}},
		"address": {
			[]string{"DATABASE_URL=postgres://app@db/app", "API_ADDR=" + listener.Addr().String()},
			1,
			[]string{"API_ADDR " + listener.Addr().String(), "choose another address"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), testenv.Build(t, "api"))
			cmd.Env = c.environ
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit)
			assert.Equal(t, c.code, exit.ExitCode())
			for _, text := range c.says {
				assert.Contains(t, string(out), text)
			}
			assert.NotContains(t, string(out), "hunter2")
		})
	}
}
