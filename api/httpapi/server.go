package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
)

const (
	idleTimeout    = 2 * time.Minute
	writeMargin    = 10 * time.Second // for the answer, after the request's own time
	maxHeaderBytes = 64 << 10
)

// Timeouts limit every wait for a client, and what a handler allows itself.
type Timeouts struct {
	Header  time.Duration // for the head of a request to arrive
	Body    time.Duration // for its body; of NDJSON, the longest silence
	Request time.Duration // of a request's work
	Stream  time.Duration // of an NDJSON request in all
}

// of returns how long a request may take.
func (t Timeouts) of(c echo.Context) time.Duration {
	if c.Path() == pathEvents && mediaType(c.Request()) == mimeNDJSON {
		return t.Stream
	}
	return t.Request
}

// NewServer returns a server for handler with a limit on every wait.
func NewServer(handler http.Handler, t Timeouts, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: t.Header,
		ReadTimeout:       t.Header + t.Body,
		WriteTimeout:      t.Header + t.Body + t.Request + writeMargin,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // broken clients
	}
}

// Serve answers requests until ctx ends; then it takes no new ones and gives
// the running ones timeout to finish.
func Serve(ctx context.Context, server *http.Server, listener net.Listener, timeout time.Duration) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		return fmt.Errorf("requests were still running after %s: %w", timeout, errors.Join(err, server.Close()))
	}
	return nil
}
