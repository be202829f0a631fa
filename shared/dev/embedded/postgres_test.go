package embedded_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// durable are settings with which a killed server loses nothing.
var durable = map[string]string{"fsync": "on", "max_connections": "20"}

func exec(t *testing.T, p *embedded.Postgres, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.URL("postgres"))
	require.NoError(t, err)
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), sql)
	require.NoError(t, err)
}

func ask(t *testing.T, p *embedded.Postgres, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.URL("postgres"))
	require.NoError(t, err)
	defer conn.Close(t.Context())
	var answer string
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&answer))
	return answer
}

func TestPostgresKeepsItsDataHoweverItEnds(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, embedded.PostgresOptions{Settings: durable})
	assert.Equal(t, "logical", ask(t, p, "SHOW wal_level"))
	assert.Equal(t, "UTF8 C", ask(t, p, "SELECT pg_encoding_to_char(encoding) || ' ' || datcollate FROM pg_database WHERE datname = 'template0'"))
	exec(t, p, "CREATE TABLE kept (how text)")
	endings := map[string]func() error{
		"stop":      func() error { return p.Stop(t.Context()) },
		"immediate": func() error { return p.StopImmediate(t.Context()) },
		"kill":      p.Kill,
	}
	port := p.Port()
	for how, end := range endings {
		exec(t, p, "INSERT INTO kept VALUES ('"+how+"')")
		require.NoError(t, end())
		_, err := pgx.Connect(t.Context(), p.URL("postgres"))
		require.Error(t, err, how)
		require.NoError(t, p.Start(t.Context()), how)
		assert.Equal(t, how, ask(t, p, "SELECT how FROM kept WHERE how = '"+how+"'"))
	}
	assert.Equal(t, port, p.Port())
	require.NoError(t, p.Restart(t.Context()))
	assert.Equal(t, "3", ask(t, p, "SELECT count(*)::text FROM kept"))
}

func TestPostgresIsAdoptedOrRestarted(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, embedded.PostgresOptions{Settings: durable})
	opts := embedded.PostgresOptions{DataDir: p.DataDir(), Settings: durable, Database: "another"}

	same, err := embedded.StartPostgres(t.Context(), opts)
	require.NoError(t, err)
	assert.Equal(t, p.PID(), same.PID())
	assert.Equal(t, p.Port(), same.Port())
	assert.Equal(t, "1", ask(t, same, "SELECT count(*)::text FROM pg_database WHERE datname = 'another'"))

	opts.Settings = map[string]string{"max_connections": "30"}
	opts.Adopt = true
	same, err = embedded.StartPostgres(t.Context(), opts)
	require.NoError(t, err)
	assert.Equal(t, p.PID(), same.PID())

	opts.Adopt = false
	other, err := embedded.StartPostgres(t.Context(), opts)
	require.NoError(t, err)
	assert.NotEqual(t, p.PID(), other.PID())
	assert.Equal(t, "30", ask(t, other, "SHOW max_connections"))
	found := embedded.FindPostgres(p.DataDir())
	require.NotNil(t, found)
	assert.Equal(t, other.PID(), found.PID())
}

// PostgreSQL refuses to start when postmaster.pid names a process of another
// program, as after a reboot.
func TestPostgresIgnoresAStalePidFile(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, embedded.PostgresOptions{Settings: durable})
	alive := testenv.StartPostgres(t, embedded.PostgresOptions{Settings: durable})
	require.NoError(t, p.Kill())
	pidFile := filepath.Join(p.DataDir(), "postmaster.pid")
	stale := strconv.Itoa(alive.PID()) + "\n" + p.DataDir() + "\n0\n" + strconv.Itoa(p.Port()) + "\n\n" + embedded.Host + "\n"
	require.NoError(t, os.WriteFile(pidFile, []byte(stale), 0o600))
	require.Nil(t, embedded.FindPostgres(p.DataDir()))
	require.NoError(t, p.Start(t.Context()))
	assert.Equal(t, "1", ask(t, alive, "SELECT '1'"), "the other server goes on")
}

func TestPostgresSaysWhoUsesItsPort(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", embedded.Host+":0")
	require.NoError(t, err)
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	dir, err := embedded.PrivateDir()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, embedded.RemovePrivate(dir)) })
	_, err = embedded.StartPostgres(t.Context(), embedded.PostgresOptions{
		DataDir: embedded.PostgresDir(dir, embedded.PostgresVersion()), Port: port,
	})
	require.ErrorContains(t, err, "port "+strconv.Itoa(port)+" for PostgreSQL is in use by embedded.test (process "+strconv.Itoa(os.Getpid())+")")
	require.ErrorContains(t, err, "set EMBEDDED_POSTGRES_PORT to a free port")
}

func TestPostgresRefusesDataOfAnotherVersion(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, embedded.PostgresOptions{Settings: durable})
	require.NoError(t, p.Stop(t.Context()))
	require.NoError(t, os.WriteFile(filepath.Join(p.DataDir(), "PG_VERSION"), []byte("13\n"), 0o600))
	_, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DataDir: p.DataDir()})
	require.ErrorContains(t, err, "holds data of PostgreSQL 13")
}

func TestUnknownVersionNamesTheKnownOnes(t *testing.T) {
	t.Parallel()
	_, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Version: "13", DataDir: t.TempDir()})
	require.ErrorContains(t, err, "must be one of 14, 15, 16, 17, 18")
}

// Test folders of the testing package are closed to other users. As root, the
// data is then relocated; as an ordinary user, it stays.
func TestPostgresRunsFromAClosedFolder(t *testing.T) {
	t.Parallel()
	closed := t.TempDir()
	require.NoError(t, os.Chmod(closed, 0o700))
	dataDir := filepath.Join(closed, "data")
	p, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DataDir: dataDir, Settings: durable})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Kill() })
	exec(t, p, "CREATE TABLE kept ()")
	link, err := os.Readlink(dataDir)
	assert.Equal(t, os.Geteuid() == 0, err == nil, "link %q, %v", link, err)
	require.NoError(t, p.Stop(t.Context()))

	again, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DataDir: dataDir, Settings: durable})
	require.NoError(t, err)
	assert.Equal(t, "1", ask(t, again, "SELECT count(*)::text FROM pg_class WHERE relname = 'kept'"))
	require.NoError(t, again.Stop(t.Context()))

	if link != "" { // with the link removed, the data is not found again
		require.NoError(t, os.Remove(dataDir))
		again, err = embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DataDir: dataDir, Settings: durable})
		require.NoError(t, err)
		assert.Equal(t, "0", ask(t, again, "SELECT count(*)::text FROM pg_class WHERE relname = 'kept'"))
		require.NoError(t, again.Stop(t.Context()))
	}
	require.NoError(t, embedded.Remove(dataDir))
	assert.NoFileExists(t, dataDir)
	if link != "" {
		assert.NoDirExists(t, filepath.Dir(link))
	}
}
