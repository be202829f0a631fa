package embedded_test

import (
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
)

// All other tests run as the current user. If that is root, this one starts, queries
// and stops both engines as an ordinary user.
func TestEnginesRunAsAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("all tests run as an ordinary user already")
	}
	t.Parallel()
	const unprivileged = 65534
	home, err := os.MkdirTemp("/var/tmp", "diehard-test-") //nolint:usetesting // other users cannot reach t.TempDir()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(home)) })
	require.NoError(t, os.Chown(home, unprivileged, unprivileged))
	program, err := embedded.Devstack(t.Context())
	require.NoError(t, err)
	content, err := os.ReadFile(program)
	require.NoError(t, err)
	own := filepath.Join(home, "devstack")
	require.NoError(t, os.WriteFile(own, content, 0o755))

	engines, err := embedded.EnginesDir()
	require.NoError(t, err)
	engines, err = filepath.EvalSymlinks(engines)
	require.NoError(t, err)
	devstack := func(args ...string) string {
		t.Helper()
		cmd := osexec.CommandContext(t.Context(), own, args...)
		cmd.Dir = home
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: unprivileged, Gid: unprivileged}}
		cmd.Env = []string{
			"PATH=" + os.Getenv("PATH"), "HOME=" + home,
			"DIEHARD_DEV_DIR=" + filepath.Join(home, "dev"), "DIEHARD_ENGINES_DIR=" + engines,
			"EMBEDDED_POSTGRES_VERSION=" + embedded.PostgresVersion(),
			"EMBEDDED_POSTGRES_PORT=" + strconv.Itoa(freePort(t)), "EMBEDDED_CLICKHOUSE_PORT=" + strconv.Itoa(freePort(t)),
		}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		return string(out)
	}
	t.Cleanup(func() { _, _ = embedded.StopEngines(t.Context(), filepath.Join(home, "dev")) })

	started := devstack("up")
	assert.Contains(t, started, "PostgreSQL "+embedded.PostgresVersion()+" is up at "+embedded.Host)
	assert.Contains(t, started, "ClickHouse is up at "+embedded.Host)
	info, err := os.Lstat(embedded.PostgresDir(filepath.Join(home, "dev"), embedded.PostgresVersion()))
	require.NoError(t, err)
	assert.EqualValues(t, unprivileged, info.Sys().(*syscall.Stat_t).Uid)
	assert.Contains(t, devstack("query", "SELECT 40 + 2 AS answer"), "answer\n──────\n42\n(1 row")
	assert.Contains(t, devstack("status"), "development: PostgreSQL")
	assert.Contains(t, devstack("down"), "is stopped")
	assert.Contains(t, devstack("status"), "development: no engine runs")
}
