package main

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/link"
	"diehard/shared/dev/testenv"
	"diehard/shared/settings"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// The kernel's socket of the server is at the far end, and what a client asks crosses the link.
func TestPostgresIsAtTheFarEnd(t *testing.T) {
	l := link.New(t, link.Options{Here: true})
	others := testenv.StartPostgres(t, embedded.PostgresOptions{})
	env := &environment{dir: filepath.Dir(others.DataDir()), postgres: others}
	far, err := env.postgresAtFarEnd(t.Context(), l)
	require.NoError(t, err)
	defer func() {
		require.NoError(t, far.postgres.Stop(t.Context()))
		require.NoError(t, embedded.Remove(far.postgres.DataDir()))
	}()
	require.NoError(t, l.Set(link.Options{RTT: 20 * time.Millisecond, MTU: 9000, Offload: true}))
	for url, tls := range map[string]bool{far.pgURL("postgres"): false, withTLS(far.pgURL("postgres")): true} {
		conn, err := pgx.Connect(t.Context(), url)
		require.NoError(t, err)
		var server, client string
		var encrypted bool
		began := time.Now()
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT host(inet_server_addr()), host(inet_client_addr()), ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
			pgx.QueryExecModeSimpleProtocol).Scan(&server, &client, &encrypted))
		assert.GreaterOrEqual(t, time.Since(began), 20*time.Millisecond)
		assert.Equal(t, l.Address(link.Far).String(), server)
		assert.Equal(t, l.Address(link.Near).String(), client)
		assert.Equal(t, tls, encrypted)
		require.NoError(t, conn.Close(t.Context()))
	}
}

func TestAServerOfOthersIsNotPutBehindALink(t *testing.T) {
	_, err := (&environment{}).postgresAtFarEnd(t.Context(), &link.Link{})
	require.ErrorIs(t, err, errSkipped)
	require.ErrorContains(t, err, "DATABASE_URL")
}

func TestThePathsAreChosenByTheEnvironment(t *testing.T) {
	all, err := settings.ParseFrom[options]("bench", nil)
	require.NoError(t, err)
	assert.Len(t, all.paths(), 7*2*2*2)
	some, err := settings.ParseFrom[options]("bench", map[string]string{
		"BENCH_RTT": "200us,1ms", "BENCH_MTU": "1500", "BENCH_TLS": "true", "BENCH_OFFLOAD": "true",
	})
	require.NoError(t, err)
	link := link.Options{RTT: 200 * time.Microsecond, MTU: 1500, Offload: true}
	paths := some.paths()
	require.Len(t, paths, 2)
	assert.Equal(t, onePath{link, true}, paths[0])
	assert.Equal(t, time.Millisecond, paths[1].RTT)
}
