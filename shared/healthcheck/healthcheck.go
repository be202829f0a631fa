// Package healthcheck requests /healthz or /readyz of a program. It is the health
// check of containers that have no shell and no curl.
package healthcheck

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	timeout     = 4 * time.Second
	maxBodySize = 2 << 10 // of the response, in an error
)

// Check requests /healthz, or /readyz if ready is set, of the program that listens
// on addr. The error contains the response, or the reason why there is none.
func Check(ctx context.Context, addr string, ready bool) error {
	path := "/healthz"
	if ready {
		path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, err := Get(ctx, addr, path)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return nil
	}
	answer, _ := io.ReadAll(io.LimitReader(response.Body, maxBodySize)) // the status is enough
	return fmt.Errorf("health check: %s answers %s: %s", path, response.Status, strings.TrimSpace(string(answer)))
}

// Get requests a path of the program that listens on addr. The caller closes the body.
func Get(ctx context.Context, addr, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+Reachable(addr)+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Close = true
	return http.DefaultClient.Do(request)
}

// Reachable returns the address to connect to for an address to listen on.
func Reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}
