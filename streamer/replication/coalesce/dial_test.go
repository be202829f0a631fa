package coalesce

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// accepting returns a listener's address; its connections are kept open.
func accepting(t *testing.T, network, address string) net.Addr {
	t.Helper()
	listener, err := net.Listen(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	}()
	return listener.Addr()
}

// A sender whose segment is larger than the window waits for a timer, so on the loopback
// interface, too, several fit in the smallest one.
func TestSeveralSegmentsFitInTheWindow(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, _ := taken(t)
	co := coalescerOf(w)
	require.Positive(t, co.segment)
	assert.LessOrEqual(t, 4*co.segment, smallWindow)
}

func TestUnixSocketsAreDialed(t *testing.T) {
	t.Parallel()
	address := accepting(t, "unix", filepath.Join(t.TempDir(), "socket")).String()
	conn, err := Dialer{}.DialContext(t.Context(), "unix", address)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

func TestDialingEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Dialer{}.DialContext(ctx, "tcp", "127.0.0.1:1")
	require.ErrorIs(t, err, context.Canceled)
}
