package testenv

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// RelayPostgres is Relay to the server that rawURL leads to, and returns its URL at listener.
func RelayPostgres(t testing.TB, listener net.Listener, rawURL string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	require.NoError(t, err)
	Relay(t, listener, u.Host)
	u.Host = listener.Addr().String()
	return u.String()
}

// Relay leads the connections to listener to target, until t ends.
func Relay(t testing.TB, listener net.Listener, target string) {
	t.Helper()
	var running sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := new(net.Dialer).DialContext(t.Context(), "tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			// The end of one direction closes both connections.
			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				running.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					_ = pair[0].Close()
					_ = pair[1].Close()
				})
			}
		}
	})
}
