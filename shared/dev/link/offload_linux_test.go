package link

import (
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The wire carries as many segments with offload as without, and the receiver gets them in fewer
// packets.
func TestOffloadChangesPacketsAndNotSegments(t *testing.T) {
	t.Parallel()
	const size, perSegment = 1_000_000, 1500 - 20 - 32 // with timestamps
	for _, offload := range []bool{false, true} {
		l := New(t, Options{Offload: offload})
		near, far := connect(t, l)
		assert.Zero(t, l.Segments(Far), "to connect carries no data")
		go func() { _, _ = far.Write(make([]byte, size)) }()
		_, err := io.ReadFull(near, make([]byte, size))
		require.NoError(t, err)
		segments, packets := l.Segments(Far), packetsTo(t, near)
		assert.GreaterOrEqual(t, segments, int64(size/perSegment))
		assert.Less(t, segments, int64(size/perSegment)*3/2, "those of a write that ends within a segment")
		if offload {
			assert.Less(t, packets, segments/2)
		} else {
			assert.LessOrEqual(t, packets, segments)
			assert.Greater(t, packets, segments/2)
		}
		assert.Zero(t, l.Segments(Near))
	}
}

// packetsTo is how often something has come to a socket.
func packetsTo(t *testing.T, conn net.Conn) int64 {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	var info *unix.TCPInfo
	require.NoError(t, raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}))
	require.NoError(t, err)
	return int64(info.Data_segs_in)
}
