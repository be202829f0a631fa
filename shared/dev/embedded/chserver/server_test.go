package chserver_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/embedded/chserver"
)

// The engine can be opened once in a process, so the tests run the server in a
// process of its own: this test binary, started again with these variables.
const (
	envServe    = "CHSERVER_TEST_SERVE"
	envDataDir  = "CHSERVER_TEST_DATA"
	envAddr     = "CHSERVER_TEST_ADDR"
	envReplicas = "CHSERVER_TEST_REPLICAS"
	envLag      = "CHSERVER_TEST_LAG"
	envProfile  = "CHSERVER_TEST_PROFILE"
	envLib      = "CHDB_LIB" // optional: a library other than the project's
)

const password = "a password"

func TestMain(m *testing.M) {
	if os.Getenv(envServe) != "" {
		os.Exit(serveHere())
	}
	dir, err := os.MkdirTemp("", "chserver-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared.dataDir = dir
	code := m.Run()
	if shared.instance != nil {
		_ = shared.instance.cmd.Process.Kill()
		_ = shared.instance.cmd.Wait()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// shared is the server that all tests use which do not stop it.
var shared struct {
	start    sync.Once
	dataDir  string
	instance *instance
}

func sharedServer(t *testing.T) *instance {
	t.Helper()
	shared.start.Do(func() {
		s := &instance{t: t, dataDir: shared.dataDir, addr: freeAddr(t)}
		s.start()
		shared.instance = s
	})
	require.NotNil(t, shared.instance, "the shared server did not start")
	return shared.instance
}

// testDatabase connects to a database of its own on the shared server.
func testDatabase(t *testing.T, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	s := sharedServer(t)
	name := uniqueID("test")
	setup, err := clickhouse.Open(s.options(nil))
	require.NoError(t, err)
	require.NoError(t, setup.Exec(t.Context(), "CREATE DATABASE "+name))
	t.Cleanup(func() {
		_ = setup.Exec(context.Background(), "DROP DATABASE "+name)
		_ = setup.Close()
	})
	conn, err := clickhouse.Open(s.options(func(o *clickhouse.Options) {
		o.Auth.Database = name
		if change != nil {
			change(o)
		}
	}))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

var ids atomic.Int64

func uniqueID(prefix string) string {
	return fmt.Sprintf("%s_%d_%d", prefix, os.Getpid(), ids.Add(1))
}

func count(t *testing.T, conn driver.Conn, table string) (n uint64) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM "+table).Scan(&n))
	return n
}

func requireCode(t *testing.T, err error, code int32) {
	t.Helper()
	var exception *clickhouse.Exception
	require.ErrorAs(t, err, &exception)
	require.Equal(t, code, exception.Code, err.Error())
}

func serveHere() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go func() { // ends with the tests, however they end
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	lag, err := time.ParseDuration(os.Getenv(envLag))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	err = chserver.Serve(ctx, chserver.Options{
		LibPath: os.Getenv(envLib), DataDir: os.Getenv(envDataDir), Addr: os.Getenv(envAddr),
		Replicas: strings.Fields(os.Getenv(envReplicas)), Users: map[string]string{"default": password}, Lag: lag, Profile: os.Getenv(envProfile),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// instance is a running server process.
type instance struct {
	t       *testing.T
	dataDir string
	addr    string
	replica string // address of a second listener, if any
	lag     time.Duration
	profile string
	cmd     *exec.Cmd
	log     *bytes.Buffer
}

func startServer(t *testing.T) *instance {
	t.Helper()
	return startInstance(t, &instance{})
}

func startInstance(t *testing.T, s *instance) *instance {
	t.Helper()
	s.t, s.dataDir, s.addr = t, t.TempDir(), freeAddr(t)
	s.start()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if t.Failed() {
			t.Log("server log:\n" + s.log.String())
		}
	})
	return s
}

func (s *instance) start() {
	s.t.Helper()
	s.launch()
	conn, err := clickhouse.Open(s.options(nil))
	require.NoError(s.t, err)
	defer conn.Close()
	await.True(s.t, func() bool { return conn.Ping(s.t.Context()) == nil }, "the server answers")
}

func (s *instance) launch() {
	s.t.Helper()
	self, err := os.Executable()
	require.NoError(s.t, err)
	s.cmd = exec.Command(self)
	s.cmd.Env = append(os.Environ(), envServe+"=1", envDataDir+"="+s.dataDir, envAddr+"="+s.addr, envLib+"="+libPath(s.t),
		envReplicas+"="+s.replica, envLag+"="+s.lag.String(), envProfile+"="+s.profile)
	s.log = new(bytes.Buffer)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	_, err = s.cmd.StdinPipe()
	require.NoError(s.t, err)
	require.NoError(s.t, s.cmd.Start())
}

func (s *instance) open(change func(*clickhouse.Options)) driver.Conn {
	s.t.Helper()
	conn, err := clickhouse.Open(s.options(change))
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *instance) options(change func(*clickhouse.Options)) *clickhouse.Options {
	o := &clickhouse.Options{
		Addr: []string{s.addr}, Auth: clickhouse.Auth{Database: "default", Username: "default", Password: password},
		Compression: &clickhouse.Compression{Method: clickhouse.CompressionLZ4},
	}
	if change != nil {
		change(o)
	}
	return o
}

func libPath(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(envLib); path != "" {
		return path
	}
	path, err := embedded.ClickHouseLibrary(t.Context(), t.Logf)
	require.NoError(t, err)
	return path
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}
