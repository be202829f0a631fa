package healthcheck_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/healthcheck"
)

func TestCheckRequestsHealthOrReadiness(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			http.Error(w, "ClickHouse is away", http.StatusServiceUnavailable)
		}
	}))
	addr := strings.TrimPrefix(server.URL, "http://")
	require.NoError(t, healthcheck.Check(t.Context(), addr, false))
	err := healthcheck.Check(t.Context(), addr, true)
	assert.ErrorContains(t, err, "/readyz answers 503")
	assert.ErrorContains(t, err, "ClickHouse is away")
	server.Close()
	assert.ErrorContains(t, healthcheck.Check(t.Context(), addr, false), "refused")
}

func TestReachable(t *testing.T) {
	t.Parallel()
	for listen, connect := range map[string]string{
		":8080": "127.0.0.1:8080", "0.0.0.0:8080": "127.0.0.1:8080", "[::]:8080": "127.0.0.1:8080",
		"127.0.0.1:8080": "127.0.0.1:8080", "10.0.0.7:80": "10.0.0.7:80", "api:80": "api:80", "[::1]:80": "[::1]:80",
	} {
		assert.Equal(t, connect, healthcheck.Reachable(listen), listen)
	}
}
