package postgres_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

func TestVerifyFullTrustsOnlyTheRightCertificate(t *testing.T) {
	t.Parallel()
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{})
	authority, stranger := testenv.NewAuthority(t), testenv.NewAuthority(t)
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	connect := func(mode, ca string) error {
		address, err := url.Parse(engine.URL("postgres"))
		require.NoError(t, err)
		address.RawQuery = url.Values{"sslmode": {mode}, "sslrootcert": {ca}}.Encode()
		pool, err := postgres.NewPool(t.Context(), postgres.Config{URL: address.String()}, "test")
		require.NoError(t, err)
		defer pool.Close()
		var encrypted bool
		err = pool.QueryRow(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&encrypted)
		if err == nil {
			assert.True(t, encrypted)
		}
		return postgres.Explain(err)
	}
	testenv.ServeTLS(t, engine, authority.Issue(t, embedded.Host, soon))
	require.NoError(t, connect("verify-full", authority.File))
	require.ErrorContains(t, connect("disable", ""), "no encryption", "the server takes TLS alone")
	err := connect("verify-full", stranger.File)
	assert.ErrorContains(t, err, "set sslrootcert in DATABASE_URL to the PEM file of the right one")
	assert.True(t, postgres.IsUnavailable(err), "it may be fixed at the server")

	testenv.ServeTLS(t, engine, authority.Issue(t, "db.example.com", soon))
	assert.ErrorContains(t, connect("verify-full", authority.File), "is for another name")
	assert.NoError(t, connect("verify-ca", authority.File))

	testenv.ServeTLS(t, engine, authority.Issue(t, embedded.Host, past))
	assert.ErrorContains(t, connect("verify-full", authority.File), "has expired")
}
