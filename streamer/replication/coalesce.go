package replication

import (
	"crypto/tls"
	"net"
	"syscall"
	"time"
)

// The walsender writes one socket message per change. As long as the receiver's
// window is open, every one of them crosses the network alone, through both ends
// of TCP and in the walsender's own time, where it costs more than decoding the
// change did. As soon as the window is full, the kernel gathers them on the
// sender's side instead, and what has gathered crosses in large pieces when the
// receiver reads again.
//
// So on a busy stream the coalescer reads until little is left, and then leaves
// the socket alone for a pause. The window is kept small for that, where the
// server is near (dial). On a quiet stream every message wakes the reader at once.
const (
	// enough bytes are read without a pause. It is also the low-water mark of a
	// busy stream: the kernel does not even signal less.
	enough = 32 << 10
	// gathered is the size of segments that have gathered, at least; hardly a row is as large.
	gathered = 4 << 10
	// pause is what the walsender needs to fill the window several times over, and
	// little beside the flush interval.
	pause = 4 * time.Millisecond

	// window reads that came faster than busyGap each make a stream busy: more
	// than 20,000 a second.
	window  = 64
	busyGap = 50 * time.Microsecond
	// Below this many bytes a read, pausing does not pay.
	quietBytes = 4 << 10
)

// coalescer is for one connection. A nil one never waits.
type coalescer struct {
	raw       syscall.RawConn
	roundTrip time.Duration // until more is here after the window has been opened
	busy      bool

	reads, bytes int
	since        time.Time
}

// newCoalescer returns nil where the socket has no low-water mark: on unix
// sockets and on systems without the option.
func newCoalescer(conn net.Conn) *coalescer {
	socket := conn
	if t, ok := conn.(*tls.Conn); ok { // the mark is on the ciphertext, which is as good
		socket = t.NetConn()
	}
	tcp, ok := socket.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil || !setLowWater(raw, 1) {
		return nil
	}
	rtt, _ := roundTrip(raw)
	return &coalescer{raw: raw, roundTrip: rtt}
}

// gather waits on a busy stream until it is worth reading, at most until
// deadline. When nothing came in the pause, the stream is quiet again.
func (c *coalescer) gather(now, deadline time.Time) {
	if c == nil || !c.busy || unread(c.raw) >= enough {
		return
	}
	end := now.Add(c.roundTrip + pause)
	if deadline.Before(end) {
		end = deadline
	}
	before := segments(c.raw)
	time.Sleep(min(c.roundTrip, time.Until(end))) //nolint:forbidigo // microseconds
	// What has gathered comes on. Single changes may come as fast: then the window must fill first.
	if n := unread(c.raw); n >= enough && (segments(c.raw)-before)*gathered <= n {
		return
	}
	time.Sleep(time.Until(end)) //nolint:forbidigo // milliseconds, never beyond the deadline
	if unread(c.raw) == 0 {
		c.quiet()
	}
}

func (c *coalescer) quiet() {
	setLowWater(c.raw, 1)
	c.busy = false
}

// observe learns from a read that began at start and brought n bytes.
func (c *coalescer) observe(start time.Time, n int) {
	if c == nil {
		return
	}
	if c.reads == 0 {
		c.since = start
	}
	c.reads++
	c.bytes += n
	if c.reads < window {
		return
	}
	switch {
	case !c.busy && start.Sub(c.since) < window*busyGap:
		c.busy = setLowWater(c.raw, enough)
	case c.busy && c.bytes < window*quietBytes:
		c.quiet()
	}
	c.reads, c.bytes = 0, 0
}
