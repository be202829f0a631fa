package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
)

// ServeTLS makes engine show certificate, and refuse connections without TLS.
// It may be called again, with another one.
func ServeTLS(t testing.TB, engine *embedded.Postgres, certificate Certificate) {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, strings.Replace(engine.URL("postgres"), "disable", "prefer", 1))
	require.NoError(t, err)
	defer conn.Close(ctx)
	for name, content := range map[string][]byte{
		"server.crt": certificate.CertPEM, "server.key": certificate.KeyPEM,
		"pg_hba.conf": []byte("hostssl all all all scram-sha-256\nhostssl replication all all scram-sha-256\n"),
	} {
		writeAs(t, filepath.Join(engine.DataDir(), "PG_VERSION"), filepath.Join(engine.DataDir(), name), content)
	}
	var loaded, again time.Time
	require.NoError(t, conn.QueryRow(ctx, "SELECT pg_conf_load_time()").Scan(&loaded))
	for _, statement := range []string{"ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"} {
		_, err = conn.Exec(ctx, statement)
		require.NoError(t, err)
	}
	await.True(t, func() bool {
		return conn.QueryRow(ctx, "SELECT pg_conf_load_time()").Scan(&again) == nil && again.After(loaded)
	}, "PostgreSQL does not read its configuration")
}

// writeAs gives a file to the owner of another one, which may be the unprivileged
// user that PostgreSQL runs as.
func writeAs(t testing.TB, other, path string, content []byte) {
	t.Helper()
	info, err := os.Stat(other)
	require.NoError(t, err)
	owner, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok, "%T", info.Sys())
	require.NoError(t, os.WriteFile(path, content, 0o600))
	require.NoError(t, os.Chown(path, int(owner.Uid), int(owner.Gid)))
}
