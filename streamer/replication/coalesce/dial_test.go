package coalesce

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

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

// The window is small where that costs nothing, and nowhere else.
func TestTheWindowIsSmallForAServerThatIsNear(t *testing.T) {
	needsMark(t)
	t.Parallel()
	address := accepting(t, "tcp", "127.0.0.1:0").String()
	for name, c := range map[string]struct {
		rtt   time.Duration
		small bool
	}{"near": {time.Hour, true}, "far": {-1, false}} {
		conn, err := Dialer{MaxLowLatencyRTT: c.rtt}.DialContext(t.Context(), "tcp", address)
		require.NoError(t, err)
		assert.Equal(t, c.small, windowOf(t, conn) == smallWindow, "%s: %d", name, windowOf(t, conn))
		require.NoError(t, conn.Close())
	}
}

// A buffer of a fixed size overruns when the window fills with small segments: the kernel
// drops some and ignores the acknowledgements on those behind them, so that a session
// whose reader waits for ClickHouse dies. The kernel's own grows instead.
func TestTheReceiveBufferIsTheKernels(t *testing.T) {
	needsMark(t)
	t.Parallel()
	address := accepting(t, "tcp", "127.0.0.1:0").String()
	plain, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer plain.Close()
	conn, err := Dialer{MaxLowLatencyRTT: time.Hour}.DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	assert.Equal(t, bufferOf(t, plain), bufferOf(t, conn.(*coalescedConn).Conn))
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
