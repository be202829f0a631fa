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
	"regexp"
	"strings"
	"sync"
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
	env.PostgresURL = testenv.AwayURL
	p := start(t, &env)
	assert.Equal(t, http.StatusServiceUnavailable, <-p.createUser(t))
	assert.Equal(t, "api listens, but PostgreSQL cannot be used: requests are answered with 503 until it can", p.first.Msg)
	assert.Contains(t, p.first.Error, "connection refused")
}

// The log says once that there is no database, and when it is there.
func TestReadyIsSaidWhenTheDatabaseIsThere(t *testing.T) {
	t.Parallel()
	env := *testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "CREATE ROLE "+env.Slot+" LOGIN PASSWORD 'secret' CONNECTION LIMIT 0")
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
	require.Eventually(t, func() bool {
		return strings.Contains(p.log.String(), `"msg":"api ready","program":"api","address":"`+p.address)
	},
		10*time.Second, 20*time.Millisecond)
	assert.NotContains(t, p.log.String(), "cannot be used", "said once, in the first line")
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
		"no keys": {
			[]string{"DATABASE_URL=postgres://app@db/app", "API_ADDR=:8080", "ENVIRONMENT=Production"},
			2,
			[]string{"API_KEYS is not set", `API_ADDR = ":8080" can be reached from elsewhere`, "api key NAME"},
		},
		"a key instead of its hash": {
			[]string{"DATABASE_URL=postgres://app@db/app", "API_KEYS=shop:hunter2"},
			2,
			[]string{"API_KEYS: key 1 is not a SHA-256 hash", "api key NAME"},
		},
		"database": {
			[]string{"DATABASE_URL=postgres://app:hunter2@db:port/app", "SHUTDOWN_TIMEOUT=1ms"},
			2,
			[]string{"api: 2 settings are wrong", "DATABASE_URL", "SHUTDOWN_TIMEOUT"},
		},
		"malformed address": {[]string{"DATABASE_URL=postgres://app@db/app", "API_ADDR=8080"}, 2, []string{`API_ADDR = "8080" is not HOST:PORT`}},
		"address": {
			[]string{"DATABASE_URL=postgres://app@db/app", "API_ADDR=" + listener.Addr().String()},
			1,
			[]string{"API_ADDR " + listener.Addr().String(), "another program is there: choose another address"},
		},
		"address of another machine": {
			[]string{"DATABASE_URL=postgres://app@db/app", "API_ADDR=192.0.2.1:80", "ENVIRONMENT=Local"}, 1, []string{"choose an address of this machine"},
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

// A new key goes from the terminal into API_KEYS, and from there opens the api.
func TestAKeyThatTheProgramMade(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), testenv.Build(t, "api"), "key", "shop").Output()
	require.NoError(t, err)
	found := regexp.MustCompile(`^key .*: +(dh_\S+)\nhash .*: +(shop:[0-9a-f]{64})\n$`).FindSubmatch(out)
	require.NotNil(t, found, "%s", out)
	p := start(t, testenv.New(t), "API_KEYS="+string(found[2]))
	assert.Equal(t, http.StatusUnauthorized, <-p.createUser(t))
	assert.Equal(t, http.StatusCreated, <-p.createUser(t, "Authorization", "Bearer "+string(found[1])))
}

func TestUnknownArgumentsAreExplained(t *testing.T) {
	t.Parallel()
	for _, arguments := range [][]string{{"serve"}, {"key", "a", "b"}, {"key", "two words"}} {
		out, err := exec.CommandContext(t.Context(), testenv.Build(t, "api"), arguments...).CombinedOutput()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		assert.Equal(t, 2, exit.ExitCode())
		assert.Regexp(t, "^(usage: api|api key: a name has)", string(out))
	}
}
