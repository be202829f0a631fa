package coalesce

import (
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// markOf asks the kernel for a socket's low-water mark.
func markOf(t testing.TB, c *coalescer) int {
	t.Helper()
	return option(t, c.raw, unix.SOL_SOCKET, unix.SO_RCVLOWAT)
}

// windowOf asks the kernel for the bound on a socket's receive window.
func windowOf(t testing.TB, c net.Conn) int {
	t.Helper()
	return option(t, c.(*coalescedConn).co.raw, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP)
}

func option(t testing.TB, raw syscall.RawConn, level, name int) (value int) {
	t.Helper()
	var err error
	require.NoError(t, raw.Control(func(fd uintptr) {
		value, err = unix.GetsockoptInt(int(fd), level, name)
	}))
	require.NoError(t, err)
	return value
}

// bufferOf asks the kernel for the size of a socket's receive buffer.
func bufferOf(t testing.TB, c net.Conn) int {
	t.Helper()
	return option(t, socketOf(c), unix.SOL_SOCKET, unix.SO_RCVBUF)
}
