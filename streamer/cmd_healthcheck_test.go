package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHealthcheckNeedsNothingButTheAddress(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	t.Setenv("STREAMER_ADDR", strings.TrimPrefix(server.URL, "http://"))
	_, err := command(t, "healthcheck")
	require.NoError(t, err)
	_, err = command(t, "healthcheck", "--ready")
	assert.ErrorContains(t, err, "503")
	t.Setenv("STREAMER_ADDR", "127.0.0.1:1")
	_, err = command(t, "healthcheck")
	assert.ErrorContains(t, err, "refused")
}
