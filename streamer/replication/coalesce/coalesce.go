// Package coalesce dials TCP connections whose busy streams are read in few large
// pieces.
//
// The walsender writes one socket message per change. As long as the receiver's
// window is open, every one of them crosses the network alone, through both ends
// of TCP and in the walsender's own time, where it costs more than decoding the
// change did. As soon as the window is full, the kernel of the sender coalesces
// them, and they cross in large segments when the receiver reads again.
//
// So on a busy stream a connection is read until little is left, and then left
// alone for a delay. The window is kept small for that where the server is near
// (Dialer). On a quiet stream every message wakes the reader at once.
package coalesce

import (
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// lowWaterMark bytes are read without a delay. The socket of a busy stream has it
	// as SO_RCVLOWAT: the kernel does not signal less.
	lowWaterMark = 32 << 10
	// coalesceDelay is what the walsender needs to fill the window several times over, and
	// little beside the flush interval.
	coalesceDelay = 4 * time.Millisecond

	// busySample reads that came faster than busyInterval each make a stream busy: more
	// than 20,000 per second.
	busySample   = 64
	busyInterval = 50 * time.Microsecond
	// quietThreshold is the number of bytes per read below which a delay does not pay.
	quietThreshold = 4 << 10
	// readAhead is for a caller that reads in small pieces, as TLS does.
	readAhead = 64 << 10
)

// coalescedConn is a TCP connection whose reads are coalesced. TLS goes on top of it.
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
	return &coalescedConn{Conn: conn, co: &coalescer{raw: raw, roundTrip: min(rtt, maxLowLatencyRTT), minCoalesced: coalescedSegment(raw)}}
}

func (c *coalescedConn) Read(p []byte) (int, error) {
	if len(c.ahead) == 0 {
		if len(p) >= lowWaterMark {
			return c.readCoalesced(p)
		}
		if c.buf == nil {
			c.buf = make([]byte, readAhead)
		}
		n, err := c.readCoalesced(c.buf)
		if n == 0 {
			return 0, err
		}
		c.ahead = c.buf[:n]
	}
	n := copy(p, c.ahead)
	c.ahead = c.ahead[n:]
	return n, nil
}

// readCoalesced reads once from the socket, after a delay on a busy stream.
func (c *coalescedConn) readCoalesced(p []byte) (int, error) {
	now := time.Now()
	c.co.wait(now, c.deadline.Load())
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
	raw          syscall.RawConn
	roundTrip    time.Duration // until more is here after the window has been opened
	minCoalesced int           // least size of a coalesced segment
	busy         bool

	reads, bytes int
	since        time.Time
}

// wait waits on a busy stream until it is worth reading, if deadline leaves time
// for that. When nothing came within the delay, the stream is quiet again: a read that
// finds nothing is never left to wait for the mark.
func (c *coalescer) wait(now time.Time, deadline *time.Time) {
	if !c.busy || unread(c.raw) >= lowWaterMark {
		return
	}
	end := now.Add(c.roundTrip + coalesceDelay)
	if deadline != nil && deadline.Before(end) {
		return
	}
	before := segments(c.raw)
	awaitReadable(c.raw, c.roundTrip)
	// Coalesced segments follow. Single changes may come as fast: then the window must fill first.
	if n := unread(c.raw); n >= lowWaterMark && (segments(c.raw)-before)*c.minCoalesced <= n {
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
	if c.reads < busySample {
		return
	}
	switch {
	case !c.busy && start.Sub(c.since) < (busySample-1)*busyInterval:
		c.busy = setLowWater(c.raw, lowWaterMark)
	case c.busy && c.bytes < busySample*quietThreshold:
		c.quiet()
	}
	c.reads, c.bytes = 0, 0
}
