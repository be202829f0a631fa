// Package health asks one of our programs whether it is well. It is the health
// check of containers that have no shell and no curl.
package health

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
	patience  = 4 * time.Second
	mostShown = 2 << 10 // of an answer, in an error
)

// Check asks the program that listens on addr whether it lives, or with ready
// whether it can work.
//
// The error is what it answered, or why it did not.
func Check(ctx context.Context, addr string, ready bool) error {
	path := "/healthz"
	if ready {
		path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+Reachable(addr)+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return nil
	}
	answer, _ := io.ReadAll(io.LimitReader(response.Body, mostShown)) // the status says enough
	return fmt.Errorf("health check: %s answers %s: %s", path, response.Status, strings.TrimSpace(string(answer)))
}

// Reachable turns an address to listen on into one to connect to.
func Reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}
