package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/shutdown"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// program is a running api.
type program struct {
	*exec.Cmd
	address string // http://host:port
	first   line
	log     *logbook // all lines but the first
}

// line is one of the log.
type line struct{ Msg, Error, Address string }

// logbook is a log that may be read while it is written.
type logbook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start runs the api on a free port, with more environment variables, and waits
// until it listens.
func start(t *testing.T, env *testenv.Env, more ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.CommandContext(t.Context(), testenv.Build(t, "api")), log: &logbook{}}
	p.Env = append(append(env.Environ(), "API_ADDR=127.0.0.1:0", "LOG_FORMATTER=json"), more...)
	stderr, err := p.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	log := bufio.NewReader(stderr)
	first, err := log.ReadBytes('\n')
	require.NoError(t, err, "the first line of the log")
	require.NoError(t, json.Unmarshal(first, &p.first), string(first))
	p.address = p.first.Address
	go func() { _, _ = io.Copy(p.log, log) }()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		if t.Failed() {
			t.Log("log of the api:\n" + p.log.String())
		}
	})
	return p
}

// createUser posts in the background; the answer's status comes on the channel.
func (p *program) createUser(t *testing.T, headers ...string) <-chan int {
	t.Helper()
	status := make(chan int, 1)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.address+"/users",
		strings.NewReader(`{"email":"test@example.com","first_name":"Test","last_name":"User"}`))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
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
	await.True(t, func() bool {
		var waiting int
		err := env.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND application_name = 'diehard-api' AND wait_event_type = 'Lock'`).Scan(&waiting)
		return err == nil && waiting == 1
	}, "the insert waits for the lock")
}

// awaitClosedPort waits until the api takes no new connections.
func (p *program) awaitClosedPort(t *testing.T) {
	t.Helper()
	await.True(t, func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(p.address, "http://"))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, "the listener is closed")
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
	assert.Equal(t, shutdown.ExitInterrupted, exit.ExitCode())
	assert.Zero(t, <-status)
}

func TestStartsAndAnswersWithoutDatabase(t *testing.T) {
	t.Parallel()
	env := *testenv.New(t)
	env.PostgresURL = testenv.AwayURL
	p := start(t, &env)
	assert.Equal(t, http.StatusServiceUnavailable, <-p.createUser(t))
	assert.Equal(t, "PostgreSQL is unavailable; requests get 503 until it is back", p.first.Msg)
	assert.Contains(t, p.first.Error, "connection refused")
}

// An outage at start is logged once, and so is its end.
func TestReadyIsLoggedWhenTheDatabaseAnswers(t *testing.T) {
	t.Parallel()
	env := *testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "CREATE ROLE "+env.Slot+" LOGIN PASSWORD 'secret' CONNECTION LIMIT 0 IN ROLE diehard_api")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+env.Slot)
		assert.NoError(t, err)
	})
	address, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	address.User = url.UserPassword(env.Slot, "secret")
	env.PostgresURL = address.String()
	p := start(t, &env)
	assert.Contains(t, p.first.Error, "too many connections for role")
	_, err = env.Pool.Exec(t.Context(), "ALTER ROLE "+env.Slot+" CONNECTION LIMIT -1")
	require.NoError(t, err)
	await.True(t, func() bool {
		return strings.Contains(p.log.String(), `"msg":"api ready","program":"api","address":"`+p.address)
	}, "the api is ready")
	assert.NotContains(t, p.log.String(), "is unavailable", "logged once, in the first line")
}
