// Package coalesce dials TCP connections whose busy streams are read in few large
// pieces.
//
// The walsender writes one socket message per change. As long as the receiver's
// window is open, every one of them crosses the network alone, through both ends
// of TCP and in the walsender's own time, where it costs more than decoding the
// change did. As soon as the window is full, the kernel of the sender coalesces
// them, and they cross in large segments when the receiver reads again.
//
// So a busy stream is read with pauses, in which its changes gather behind the full window, and
// between them for as long as more of them wait there, which their age shows (Conn.Sent). On a quiet
// stream every message wakes the reader at once.
package coalesce

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"
)

// readAhead is for a caller that reads in small pieces, as TLS does.
const readAhead = 64 << 10

// Conn is a TCP connection whose reads are coalesced. TLS goes on top of it. Reads and Sent belong to
// one goroutine.
type Conn struct {
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
	return &Conn{Conn: conn, co: newCoalescer(raw)}
}

// Of returns the Conn under conn, which may be TLS; nil where reads are not coalesced.
func Of(conn net.Conn) *Conn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, _ := conn.(*Conn)
	return c
}

// Sent notes when the server sent the last message of what was read, by its clock, in microseconds
// since 1970. A stream whose messages are never dated is paused only when the server has no more.
// On a nil Conn it does nothing.
func (c *Conn) Sent(micros int64) {
	if c != nil {
		c.co.age.note(micros)
	}
}

// Read is that of net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.ahead) == 0 {
		if len(p) >= readAhead/2 {
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

// readCoalesced reads once from the socket, after a pause on a busy stream.
func (c *Conn) readCoalesced(p []byte) (int, error) {
	now := time.Now()
	n, err := c.Conn.Read(p[:c.co.limit(c.deadline.Load(), len(p))])
	c.co.observe(now, n)
	return n, err
}

// SetReadDeadline is that of net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.note(t)
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline is that of net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.note(t)
	return c.Conn.SetDeadline(t)
}

func (c *Conn) note(t time.Time) {
	if t.IsZero() {
		c.deadline.Store(nil)
		return
	}
	c.deadline.Store(&t)
}
