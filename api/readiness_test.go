package main_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/keys"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// awaitReadyz waits for an answer of /readyz that says text.
func (p *program) awaitReadyz(t *testing.T, status int, text string) {
	t.Helper()
	await.True(t, func() bool {
		code, answer := p.send(t, http.MethodGet, "/readyz", nil)
		return code == status && strings.Contains(answer, text)
	}, "/readyz never says %d %s", status, text)
}

// Ready means that the api can write: with the tables of its version, and a server
// that takes its login.
func TestReadyMeansAble(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := start(t, env)
	p.awaitReadyz(t, http.StatusOK, "ready")
	exec := func(statement string) {
		_, err := env.Pool.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	exec("DELETE FROM public.diehard_api_version WHERE version_id > 1")
	p.awaitReadyz(t, http.StatusServiceUnavailable, "run `api migrate up`")
	exec("INSERT INTO public.diehard_api_version (version_id) VALUES (999)") // a newer api has migrated
	p.awaitReadyz(t, http.StatusOK, "ready")
	exec("DELETE FROM public.diehard_outbox_version WHERE version_id > 2")
	p.awaitReadyz(t, http.StatusServiceUnavailable, "run `streamer migrate up`")
	exec("DROP TABLE public.diehard_outbox_version")
	p.awaitReadyz(t, http.StatusServiceUnavailable, "streamer migrate up")
	exec("DROP TABLE public.users CASCADE")
	code, answer := p.send(t, http.MethodPost, "/users", strings.NewReader(`{"email":"a@example.com"}`))
	assert.Equal(t, http.StatusServiceUnavailable, code, answer)
}

func TestAWrongPasswordIsNamed(t *testing.T) {
	t.Parallel()
	env := *testenv.New(t)
	address, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	address.User = url.UserPassword(address.User.Username(), "hunter2")
	env.PostgresURL = address.String()
	p := start(t, &env)
	p.awaitReadyz(t, http.StatusServiceUnavailable, "refuses the user or the password")
	code, answer := p.send(t, http.MethodPost, "/users", strings.NewReader(`{"email":"a@example.com"}`))
	assert.Equal(t, http.StatusServiceUnavailable, code, answer)
	assert.NotContains(t, answer+p.log.String()+p.first.Error, "hunter2")
}

// Who published an event is in the outbox: the name of the key.
func TestTheNameOfTheKeyIsStored(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	secret, entry, err := keys.New("shop")
	require.NoError(t, err)
	p := start(t, env, "API_KEYS="+entry)
	code, answer := p.send(t, http.MethodPost, "/users", strings.NewReader(`{"email":"a@example.com"}`), "X-Api-Key", secret)
	require.Equal(t, http.StatusCreated, code, answer)
	code, answer = p.send(t, http.MethodPost, "/events", strings.NewReader(`{"event_type":"t","event_context":1,"event_key":"order 42"}`), "X-Api-Key", secret)
	require.Equal(t, http.StatusAccepted, code, answer)
	var by []string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT array_agg(published_by) FROM public.outbox").Scan(&by))
	assert.Equal(t, []string{"shop", "shop"}, by)
}

func TestMetricsHaveAnAddressOfTheirOwn(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, entry, err := keys.New("shop")
	require.NoError(t, err)
	address := testenv.FreeAddress(t)
	start(t, env, "API_KEYS="+entry, "API_METRICS_ADDR="+address)
	metrics := program{address: "http://" + address}
	code, text := metrics.send(t, http.MethodGet, "/metrics", nil)
	assert.Equal(t, http.StatusOK, code)
	assert.Contains(t, text, `diehard_api_events_total{environment="Local",result="stored"} 0`)
	code, _ = metrics.send(t, http.MethodGet, "/users/1", nil)
	assert.Equal(t, http.StatusNotFound, code)
	status, _ := metrics.raw(t, "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n")
	assert.Equal(t, http.StatusMisdirectedRequest, status)
}
