package replication

import (
	"net"
	"sync/atomic"
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
	// pause is what the walsender needs to fill the window several times over, and
	// little beside the flush interval.
	pause = 4 * time.Millisecond

	// window reads that came faster than busyGap each make a stream busy: more
	// than 20,000 a second.
	window  = 64
	busyGap = 50 * time.Microsecond
	// Below this many bytes a read, pausing does not pay.
	quietBytes = 4 << 10
	// readAhead is for a caller that reads in small pieces, as TLS does.
	readAhead = 64 << 10
)

// coalescedConn is a TCP connection that is read in strokes. TLS goes on top of it.
type coalescedConn struct {
	net.Conn
	co       *coalescer
	deadline atomic.Pointer[time.Time] // of reads; nil for none

	ahead []byte // read and not yet handed out
	buf   []byte
}

// coalesced returns conn itself where its socket has no low-water mark: on unix
// sockets and on systems without the option.
func coalesced(conn net.Conn) net.Conn {
	raw := socketOf(conn)
	if raw == nil || !setLowWater(raw, 1) {
		return conn
	}
	rtt, _ := roundTrip(raw)
	return &coalescedConn{Conn: conn, co: &coalescer{raw: raw, roundTrip: min(rtt, near), whole: segmentOf(raw)}}
}

func (c *coalescedConn) Read(p []byte) (int, error) {
	if len(c.ahead) == 0 {
		if len(p) >= enough {
			return c.stroke(p)
		}
		if c.buf == nil {
			c.buf = make([]byte, readAhead)
		}
		n, err := c.stroke(c.buf)
		if n == 0 {
			return 0, err
		}
		c.ahead = c.buf[:n]
	}
	n := copy(p, c.ahead)
	c.ahead = c.ahead[n:]
	return n, nil
}

// stroke reads once from the socket, letting bytes gather on a busy stream.
func (c *coalescedConn) stroke(p []byte) (int, error) {
	now := time.Now()
	c.co.gather(now, c.deadline.Load())
	n, err := c.Conn.Read(p)
	c.co.observe(now, n)
	return n, err
}

func (c *coalescedConn) SetReadDeadline(t time.Time) error {
	c.note(t)
	return c.Conn.SetReadDeadline(t)
}

func (c *coalescedConn) SetDeadline(t time.Time) error {
	c.note(t)
	return c.Conn.SetDeadline(t)
}

func (c *coalescedConn) note(t time.Time) {
	if t.IsZero() {
		c.deadline.Store(nil)
		return
	}
	c.deadline.Store(&t)
}

// coalescer knows when to read one socket.
type coalescer struct {
	raw       syscall.RawConn
	roundTrip time.Duration // until more is here after the window has been opened
	whole     int           // the size, at least, of segments that have gathered
	busy      bool

	reads, bytes int
	since        time.Time
}

// gather waits on a busy stream until it is worth reading, if deadline leaves time
// for that. When nothing came in the pause, the stream is quiet again: a read that
// finds nothing is never left to wait for the mark.
func (c *coalescer) gather(now time.Time, deadline *time.Time) {
	if !c.busy || unread(c.raw) >= enough {
		return
	}
	end := now.Add(c.roundTrip + pause)
	if deadline != nil && deadline.Before(end) {
		return
	}
	before := segments(c.raw)
	awaitReadable(c.raw, c.roundTrip)
	// What has gathered comes on. Single changes may come as fast: then the window must fill first.
	if n := unread(c.raw); n >= enough && (segments(c.raw)-before)*c.whole <= n {
		return
	}
	time.Sleep(time.Until(end)) //nolint:forbidigo // milliseconds, and there is time for them
	if unread(c.raw) == 0 {
		c.quiet()
	}
}

func (c *coalescer) quiet() {
	setLowWater(c.raw, 1)
	c.busy, c.reads, c.bytes = false, 0, 0
}

// observe learns from a read that began at start and brought n bytes.
func (c *coalescer) observe(start time.Time, n int) {
	if c.reads == 0 {
		c.since = start
	}
	c.reads++
	c.bytes += n
	if c.reads < window {
		return
	}
	switch {
	case !c.busy && start.Sub(c.since) < (window-1)*busyGap:
		c.busy = setLowWater(c.raw, enough)
	case c.busy && c.bytes < window*quietBytes:
		c.quiet()
	}
	c.reads, c.bytes = 0, 0
}
