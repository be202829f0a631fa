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

// maxSegment is less than half of any window, on the loopback interface too: a sender
// whose segment is larger than the window waits for a timer.
const maxSegment = 16 << 10

// limitSegment bounds the segments of a socket that is not yet connected. Other kinds of
// socket refuse, which does no harm.
// Source: tcp(7), TCP_MAXSEG.
func limitSegment(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, maxSegment)
	})
}

// setWindow bounds what the server may send before it is read. The kernel may raise the
// bounds later, so they are set again and again. The receive buffer stays the kernel's
// (SO_BUF_LOCK), which lets it grow when small segments fill it that take many times their
// size: of a fixed one it drops them while the window is open, and ignores the acknowledgements on the
// segments behind them, so that our own messages stop before long. Where the kernel
// does not know SO_BUF_LOCK (before 5.14) or allows no such buffer (net.core.rmem_max), it is the
// window alone that is bounded.
// Source: tcp(7), TCP_WINDOW_CLAMP; socket(7), SO_RCVBUF; Linux, tcp_clamp_window.
func setWindow(raw syscall.RawConn, n int, shrink bool) {
	_ = raw.Control(func(fd uintptr) {
		s := int(fd)
		lock, err := unix.GetsockoptInt(s, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
		size, _ := unix.GetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUF)
		if err == nil && (size < 2*min(n, maxBuffer) || shrink && size > 3*n) {
			_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUF, n)
			_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_BUF_LOCK, lock)
		}
		_ = unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, n)
	})
}

// maxBuffer is what Linux allows to ask for by default (net.core.rmem_max).
const maxBuffer = 212_992

// releaseWindow leaves the window to the kernel.
func releaseWindow(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, largeWindow)
	})
}

// acknowledge acknowledges what has come at once. The kernel delays that for up to 40 ms when
// little came, and the sender may not send more than so many segments before.
// Source: tcp(7), TCP_QUICKACK.
func acknowledge(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
	})
}

// look asks the kernel about a connection.
// Source: tcp(7), TCP_INFO.
func look(raw syscall.RawConn) (p path, t traffic) {
	t.at = time.Now()
	info := tcpInfo(raw)
	if info == nil {
		return p, t
	}
	t.bytes, t.segments = int(info.Bytes_received), int(info.Data_segs_in) //nolint:gosec // far less than 63 bits
	t.disordered = int(info.Rcv_ooopack)
	p.segment = int(info.Advmss)
	rtt := info.Min_rtt // of the few messages that we send
	if info.Rcv_rtt > 0 {
		rtt = min(rtt, info.Rcv_rtt) // of what we read, with pauses in it
	}
	if rtt != math.MaxUint32 {
		p.roundTrip = time.Duration(rtt) * time.Microsecond
	}
	return p, t
}

func tcpInfo(raw syscall.RawConn) (info *unix.TCPInfo) {
	_ = raw.Control(func(fd uintptr) {
		info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info
}

// sleep waits for d. The timers of the runtime are too coarse for less than a millisecond.
func sleep(d time.Duration) {
	switch {
	case d <= 0:
	case d < time.Millisecond:
		timeout := unix.NsecToTimespec(d.Nanoseconds())
		_ = unix.Nanosleep(&timeout, nil)
	default:
		time.Sleep(d) //nolint:forbidigo // milliseconds, and there is time for them
	}
}
