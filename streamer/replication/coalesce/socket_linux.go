package coalesce

import (
	"math"
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

// clampWindow bounds the receive window of a socket that is not yet connected. Other
// kinds of socket refuse, which does no harm. The receive buffer is left to the kernel, which
// lets it grow when small segments fill it that take many times their size: with a fixed
// one (SO_RCVBUF) it drops them while the window is open, and ignores the acknowledgements
// on the segments behind them, so that our own messages stop before long.
// Source: tcp(7), TCP_WINDOW_CLAMP; Linux, tcp_clamp_window.
func clampWindow(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, smallWindow)
	})
}

// roundTrip returns the shortest time in which the other end has answered, if known.
// Source: tcp(7), TCP_INFO.
func roundTrip(raw syscall.RawConn) (rtt time.Duration, known bool) {
	info := tcpInfo(raw)
	if info == nil || info.Min_rtt == 0 || info.Min_rtt == math.MaxUint32 {
		return 0, false
	}
	return time.Duration(info.Min_rtt) * time.Microsecond, true
}

// segments returns how many segments with data have come so far, each as large as
// the link carries at most.
func segments(raw syscall.RawConn) int {
	info := tcpInfo(raw)
	if info == nil {
		return 0
	}
	return int(info.Data_segs_in)
}

// coalescedSegment returns what segments have at least that carry several changes: half of
// what the link can carry, or 4 KB, which hardly a change has.
func coalescedSegment(raw syscall.RawConn) int {
	info := tcpInfo(raw)
	if info == nil {
		return 0
	}
	return min(4<<10, int(info.Advmss)/2)
}

func tcpInfo(raw syscall.RawConn) (info *unix.TCPInfo) {
	_ = raw.Control(func(fd uintptr) {
		info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info
}

// awaitReadable waits at most d, which is much less than a timer of the runtime can,
// until as much waits in the socket as the low-water mark says.
func awaitReadable(raw syscall.RawConn, d time.Duration) {
	_ = raw.Control(func(fd uintptr) {
		timeout := unix.NsecToTimespec(d.Nanoseconds())
		_, _ = unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &timeout, nil) //nolint:gosec // descriptors are small
	})
}
