package replication

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// setLowWater sets SO_RCVLOWAT and reports whether the kernel took it.
// Source: socket(7), tcp(7).
func setLowWater(raw syscall.RawConn, n int) bool {
	var set error
	err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n)
	})
	return err == nil && set == nil
}

// unread returns how many bytes wait in the socket, 0 when it cannot tell.
// Source: tcp(7), SIOCINQ.
func unread(fd uintptr) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
	if err != nil {
		return 0
	}
	return n
}
