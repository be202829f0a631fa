package e2e

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// The whole way over TLS, compressed, certificates checked: the api's pool, the streamer's
// stream and its other connections, and ClickHouse.
func TestEverythingGoesOverTLS(t *testing.T) {
	t.Parallel()
	env, engine := ownPostgres(t, nil)
	authority, stranger := testenv.NewAuthority(t), testenv.NewAuthority(t)
	end := time.Now().Add(time.Hour)
	env.Pool.Reset()
	testenv.ServeTLS(t, engine, authority.Issue(t, embedded.Host, end))
	port := testenv.TerminateTLS(t, env.ClickHouseConfig.Address(),
		&tls.Config{Certificates: []tls.Certificate{authority.Issue(t, embedded.Host, end).Certificate}})
	trusting := func(a *testenv.Authority) []string {
		secure := env.ClickHouseConfig
		secure.Port, secure.Secure, secure.CAFile = port, true, a.File
		address, err := url.Parse(engine.URL("diehard"))
		require.NoError(t, err)
		address.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {a.File}}.Encode()
		return append(testenv.ClickHouseEnviron(secure), "DATABASE_URL="+address.String(), "CLICKHOUSE_COMPRESSION=lz4")
	}

	s := run(t, env, "streamer", trusting(authority)...)
	api := run(t, env, "api", trusting(authority)...).address()
	s.says("streaming")
	code, body := post(t, api+"/users", `{"email":"ada@example.com","first_name":"Ada","last_name":"Lovelace"}`)
	require.Equal(t, http.StatusCreated, code, body)
	awaitRows(t, env, 1)

	distrustful := run(t, env, "streamer", trusting(stranger)...)
	cause, _ := distrustful.says("session ended")["error"].(string)
	assert.Contains(t, cause, "set sslrootcert in DATABASE_URL")
	assert.Contains(t, cause, "is not trusted")
}
