package coalesce

import (
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

// lockOf asks the kernel whether the buffers of a socket have fixed sizes.
func lockOf(t testing.TB, c *coalescer) int {
	t.Helper()
	return option(t, c.raw, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
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
