package replication

import (
	"syscall"
	"time"

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
func unread(raw syscall.RawConn) (n int) {
	_ = raw.Control(func(fd uintptr) {
		n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
	})
	return max(n, 0)
}

// limitWindow bounds the receive window of a socket that is not yet connected,
// while leaving room for the overhead of many small segments. Other kinds of
// socket refuse, which does no harm. Source: socket(7), SO_RCVBUF; tcp(7),
// TCP_WINDOW_CLAMP.
func limitWindow(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, smallWindow) == nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, smallBuffer)
		}
	})
}

// roundTrip returns the shortest time in which the other end has answered, if known.
// Source: tcp(7), TCP_INFO.
func roundTrip(raw syscall.RawConn) (rtt time.Duration, known bool) {
	info := tcpInfo(raw)
	if info == nil {
		return 0, false
	}
	return time.Duration(info.Min_rtt) * time.Microsecond, true
}

// segments returns how many TCP segments with data have come so far.
func segments(raw syscall.RawConn) int {
	info := tcpInfo(raw)
	if info == nil {
		return 0
	}
	return int(info.Data_segs_in)
}

func tcpInfo(raw syscall.RawConn) (info *unix.TCPInfo) {
	_ = raw.Control(func(fd uintptr) {
		info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info
}
