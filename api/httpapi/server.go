package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	idleTimeout    = 2 * time.Minute
	writeMargin    = 10 * time.Second // for the answer, after the request's timeout
	maxHeaderBytes = 64 << 10
)

// Timeouts bound every wait for a client, and the work of a handler.
type Timeouts struct {
	Header   time.Duration // to receive the header
	Body     time.Duration // without a byte of the body
	BodyRate int64         // bytes per second in which a body must arrive after Body; 0: any
	Request  time.Duration // of a request, without its body
	Stream   time.Duration // of an NDJSON request, with its body
}

// NewServer returns a server for handler with a timeout for every wait. Handlers
// that read a body or need longer move the deadlines.
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

// Serve serves requests until ctx ends; then it accepts no new ones and waits up to
// timeout for those in progress.
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
