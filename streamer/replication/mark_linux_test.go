package replication

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// markOf asks the kernel for a socket's low-water mark.
func markOf(t testing.TB, c *coalescer) int {
	t.Helper()
	var mark int
	var err error
	require.NoError(t, c.raw.Control(func(fd uintptr) {
		mark, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT)
	}))
	require.NoError(t, err)
	return mark
}
