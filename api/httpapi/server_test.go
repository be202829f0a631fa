package httpapi_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/httpapi"
	"diehard/shared/dev/await"
)

// serve runs a server whose requests wait for release.
func serve(t *testing.T, timeout time.Duration, release chan struct{}) (address string, entered chan struct{}, stop func() error) {
	t.Helper()
	entered = make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		w.WriteHeader(http.StatusNoContent)
	})
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	server := httpapi.NewServer(handler, timeouts, slog.New(slog.DiscardHandler))
	go func() { done <- httpapi.Serve(ctx, server, listener, timeout) }()
	return listener.Addr().String(), entered, func() error {
		cancel()
		return <-done
	}
}

// get asks in the background; the status comes on the channel, 0 if there was
// no answer.
func get(t *testing.T, address string) <-chan int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address, nil)
	require.NoError(t, err)
	status := make(chan int, 1)
	go func() {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Do(request)
		if err != nil {
			status <- 0
			return
		}
		_ = response.Body.Close()
		status <- response.StatusCode
	}()
	return status
}

func TestServeFinishesRunningRequests(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	address, entered, stop := serve(t, 10*time.Second, release)
	status := get(t, address)
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	await.True(t, func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, "no new connections")
	close(release)
	assert.Equal(t, http.StatusNoContent, <-status)
	assert.NoError(t, <-stopped)
}

func TestServeGivesUpAfterItsTimeout(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	address, entered, stop := serve(t, 20*time.Millisecond, release)
	status := get(t, address)
	<-entered
	require.ErrorContains(t, stop(), "requests were still running after 20ms")
	assert.Zero(t, <-status, "the connection was cut")
}

func TestServeReportsABrokenListener(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	server := httpapi.NewServer(http.NotFoundHandler(), timeouts, slog.New(slog.DiscardHandler))
	assert.ErrorContains(t, httpapi.Serve(t.Context(), server, listener, time.Second), "serve: ")
}

func TestEveryWaitHasALimit(t *testing.T) {
	t.Parallel()
	server := httpapi.NewServer(http.NotFoundHandler(), timeouts, slog.New(slog.DiscardHandler))
	assert.Positive(t, server.ReadHeaderTimeout)
	assert.Positive(t, server.ReadTimeout)
	assert.Greater(t, server.WriteTimeout, server.ReadTimeout+timeouts.Request, "there is time to answer")
	assert.Positive(t, server.IdleTimeout)
	assert.Positive(t, server.MaxHeaderBytes)
}
