package testenv

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
)

// findPgBouncer looks where Debian puts it, too, which is not in every PATH.
func findPgBouncer() (string, error) {
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/pgbouncer")
	}
	return program, err
}

// PgBouncer starts PgBouncer in front of the server of a database and returns the
// database's address there. settings are lines of its configuration.
func PgBouncer(t testing.TB, postgresURL string, settings ...string) string {
	t.Helper()
	program, err := findPgBouncer()
	if err != nil {
		if os.Getenv("CI") != "" {
			require.NoError(t, err, "apt-get install pgbouncer")
		}
		t.Skip("needs PgBouncer: apt-get install pgbouncer")
	}
	address, err := url.Parse(postgresURL)
	require.NoError(t, err)
	port := freePort(t)
	dir := t.TempDir()
	config := []string{
		"[databases]", fmt.Sprintf("* = host=%s port=%s", address.Hostname(), address.Port()),
		"[pgbouncer]", "listen_addr = 127.0.0.1", "listen_port = " + port, "unix_socket_dir =",
		"auth_type = any", "max_client_conn = 500", "default_pool_size = 3", "ignore_startup_parameters = extra_float_digits",
	}
	if address.User != nil {
		config[1] += " user=" + address.User.Username()
	}
	if password, ok := address.User.Password(); ok {
		config[1] += " password=" + password
	}
	file := filepath.Join(dir, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(file, []byte(strings.Join(append(config, settings...), "\n")+"\n"), 0o600))
	args := []string{file}
	if current, err := user.Current(); err == nil && current.Uid == "0" { // it refuses to run as root
		daemon, err := user.Lookup("daemon")
		require.NoError(t, err)
		uid, err := strconv.Atoi(daemon.Uid)
		require.NoError(t, err)
		for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
			require.NoError(t, os.Chmod(path, 0o755)) //nolint:gosec // the pooler runs under another account
		}
		require.NoError(t, os.Chown(file, uid, -1))
		args = append([]string{"-u", "daemon"}, args...)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = log.Close()
	})
	here := "127.0.0.1:" + port
	await.True(t, func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", here)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, "PgBouncer does not listen")
	address.Host = here
	return address.String()
}

// FreeAddress is one of the loopback interface on which nothing listens.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", freePort(t))
}

func freePort(t testing.TB) string {
	t.Helper()
	port, err := embedded.FreePort()
	require.NoError(t, err)
	return strconv.Itoa(port)
}
