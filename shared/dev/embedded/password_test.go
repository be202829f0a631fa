package embedded_test

import (
	"net/url"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

func TestPostgresAsksForItsPassword(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, embedded.PostgresOptions{Settings: durable})
	address, err := url.Parse(p.URL("postgres"))
	require.NoError(t, err)
	for _, user := range []*url.Userinfo{url.User("postgres"), url.UserPassword("postgres", "wrong"), url.UserPassword("nobody", "")} {
		for _, replication := range []string{"", "&replication=true"} {
			other := *address
			other.User = user
			other.RawQuery += replication
			_, err := pgconn.Connect(t.Context(), other.String())
			assert.ErrorContains(t, err, "password", "%s", user)
		}
	}
	replication, err := pgconn.Connect(t.Context(), p.URL("postgres")+"&replication=true")
	require.NoError(t, err)
	require.NoError(t, replication.Close(t.Context()))
}

func TestClickHouseAsksForItsPassword(t *testing.T) {
	t.Parallel()
	c := testenv.StartClickHouse(t, embedded.ClickHouseOptions{})
	for _, password := range []string{"", "wrong"} {
		config := c.Config("default")
		config.Password = password
		_, err := clickhouse.Open(t.Context(), config)
		exception := &ch.Exception{}
		require.ErrorAs(t, err, &exception)
		assert.EqualValues(t, 516, exception.Code)
	}
}

// Another account of the machine reads neither a password nor data.
func TestOtherUsersReadNothing(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, embedded.PostgresOptions{Settings: durable})
	c := testenv.StartClickHouse(t, embedded.ClickHouseOptions{})
	for _, dataDir := range []string{p.DataDir(), c.DataDir()} {
		for path, mode := range map[string]os.FileMode{dataDir: 0o700, dataDir + ".password": 0o600, dataDir + ".log": 0o600} {
			info, err := os.Stat(path)
			require.NoError(t, err)
			assert.Equal(t, mode, info.Mode().Perm(), path)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	for _, path := range []string{p.DataDir() + ".password", c.DataDir() + ".password", c.DataDir() + "/users.xml"} {
		real, err := filepath.EvalSymlinks(path)
		require.NoError(t, err)
		cat := osexec.CommandContext(t.Context(), "cat", real)
		cat.Dir = "/"
		cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
		out, err := cat.CombinedOutput()
		require.Error(t, err, path)
		assert.Contains(t, string(out), "Permission denied")
	}
}

func TestTheFolderOfTheCheckoutIsClosed(t *testing.T) {
	t.Setenv("DIEHARD_DEV_DIR", "")
	dir, err := embedded.DevDir()
	require.NoError(t, err)
	info, err := os.Stat(dir)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode().Perm(), dir)

	t.Setenv("DIEHARD_DEV_DIR", filepath.Join(t.TempDir(), "new"))
	dir, err = embedded.DevDir()
	require.NoError(t, err)
	info, err = os.Stat(dir)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode().Perm(), dir)
}

// Data whose password was lost gets a new one, whether its server runs or not.
func TestALostPasswordIsReplaced(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, embedded.PostgresOptions{Settings: durable})
	c := testenv.StartClickHouse(t, embedded.ClickHouseOptions{})
	exec(t, p, "CREATE TABLE kept ()")
	run(t, c, "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n")
	for _, stopped := range []bool{false, true} {
		if stopped {
			require.NoError(t, p.Stop(t.Context()))
			require.NoError(t, c.Stop(t.Context()))
		}
		old := []string{p.URL("postgres"), c.Config("").Password}
		require.NoError(t, os.Remove(p.DataDir()+".password"))
		require.NoError(t, os.Remove(c.DataDir()+".password"))
		var err error
		p, err = embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DataDir: p.DataDir(), Port: p.Port(), Settings: durable})
		require.NoError(t, err)
		c, err = embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{DataDir: c.DataDir(), Port: c.Port()})
		require.NoError(t, err)
		assert.Equal(t, "1", ask(t, p, "SELECT count(*)::text FROM pg_class WHERE relname = 'kept'"))
		assert.Zero(t, count(t, c, "kept"))
		_, err = pgx.Connect(t.Context(), old[0])
		require.ErrorContains(t, err, "password authentication failed")
		assert.NotEqual(t, old[1], c.Config("").Password)
	}
}

// Passwords are neither among the arguments of a process nor in a log.
func TestPasswordsAreNotShown(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, embedded.PostgresOptions{Settings: durable})
	c := testenv.StartClickHouse(t, embedded.ClickHouseOptions{})
	exec(t, p, "SELECT 1")
	run(t, c, "SELECT 1")
	for dataDir, pid := range map[string]int{p.DataDir(): p.PID(), c.DataDir(): c.PID()} {
		password, err := embedded.Password(dataDir)
		require.NoError(t, err)
		require.Greater(t, len(password), 20)
		for _, path := range []string{dataDir + ".log", "/proc/" + strconv.Itoa(pid) + "/cmdline"} {
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.NotContains(t, string(content), password, path)
		}
	}
}
