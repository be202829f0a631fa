package httpapi_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil)
	for _, c := range []struct {
		kind          string
		users, events int
	}{
		{"application/json", 422, 422},
		{"Application/JSON; charset=utf-8", 422, 422},
		{`application/json;charset="UTF-8"`, 422, 422},
		{"application/json; charset=us-ascii", 422, 422},
		{"application/json; version=1; charset=utf-8", 422, 422},
		{"application/json; charset=iso-8859-1", 415, 415},
		{"application/json; charset=utf-16", 415, 415},
		{"application/x-ndjson", 415, 422},
		{"application/ndjson", 415, 422},
		{"application/jsonl; charset=utf-8", 415, 422},
		{"application/x-jsonlines", 415, 422},
		{"application/jsonl; charset=latin1", 415, 415},
		{"application/json-seq", 415, 415},
		{"text/json", 415, 415},
		{"text/plain", 415, 415},
		{"json", 415, 415},
		{"/", 415, 415},
		{"", 415, 415},
	} {
		for path, want := range map[string]int{"/users": c.users, "/events": c.events} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL+path, strings.NewReader(`{}`))
			require.NoError(t, err)
			request.Header.Set("Content-Type", c.kind)
			response, err := a.Client().Do(request)
			require.NoError(t, err)
			_ = response.Body.Close()
			assert.Equal(t, want, response.StatusCode, "%s as %s", path, c.kind)
		}
	}
}

// Monitors and load balancers ask with HEAD: the answer of GET without its body.
func TestHead(t *testing.T) {
	t.Parallel()
	a := start(t, testenv.New(t).PostgresURL, nil)
	created := a.post(t, `{"email":"a@example.com"}`)
	for _, path := range []string{
		"/healthz", "/readyz", "/metrics", "/docs", "/docs/page.css", "/openapi.yaml", "/openapi.json",
		created.header.Get("Location"), "/users/1", "/nothing", "/users", "/events",
	} {
		want := a.get(t, http.MethodGet, path)
		got := a.get(t, http.MethodHead, path)
		assert.Equal(t, want.status, got.status, path)
		assert.Empty(t, got.body)
		for _, header := range []string{"Content-Type", "Cache-Control", "Allow", "X-Content-Type-Options"} {
			assert.Equal(t, want.header.Get(header), got.header.Get(header), "%s of %s", header, path)
		}
		assert.Contains(t, []string{want.header.Get("Content-Length"), ""}, got.header.Get("Content-Length"), path)
	}
	assert.NotEmpty(t, a.get(t, http.MethodHead, "/docs").header.Get("Content-Length"))
}

// get sends a request that the description need not have.
func (a *api) get(t *testing.T, method, path string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, a.URL+path, http.NoBody)
	require.NoError(t, err)
	response, err := a.Client().Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return answer{response.StatusCode, response.Header, path, string(content)}
}

// A client that lost the answer repeats its request, and gets it.
func TestARepeatedUserIsReplayed(t *testing.T) {
	t.Parallel()
	a := start(t, testenv.New(t).PostgresURL, nil)
	const body = `{"email":"a@example.com","first_name":"Ann"}`
	first := a.post(t, body, "Idempotency-Key", "k")
	require.Equal(t, http.StatusCreated, first.status, first.body)
	assert.Empty(t, first.header.Get("Idempotency-Replayed"))
	again := a.post(t, body, "Idempotency-Key", `"k"`)
	assert.Equal(t, http.StatusCreated, again.status)
	assert.Equal(t, first.body, again.body)
	assert.Equal(t, first.header.Get("Location"), again.header.Get("Location"))
	assert.Equal(t, "true", again.header.Get("Idempotency-Replayed"))

	requireProblem(t, a.post(t, body+" ", "Idempotency-Key", "k"), http.StatusUnprocessableEntity)
	requireProblem(t, a.post(t, body), http.StatusConflict)
	requireProblem(t, a.post(t, body, "Idempotency-Key", "other"), http.StatusConflict)
	requireProblem(t, a.post(t, body, "Idempotency-Key", "a b"), http.StatusBadRequest)
	requireProblem(t, a.publish(t, "application/json", oneEvent, "Idempotency-Key", "k"), http.StatusUnprocessableEntity)
	assert.Contains(t, a.do(t, http.MethodGet, "/metrics", "").body, `diehard_api_events_total{result="repeated"} 1`)
}
