package replication

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// The walsender writes one socket message per change. A reader that wakes for
// each of them spends its time, and the walsender's, on switching between the
// two. On a busy stream the coalescer therefore raises the socket's low-water
// mark, so that the kernel does not even signal less than lowWater bytes, and
// waits until they are there or maxWait has passed. On a quiet stream, and where
// the kernel knows no such mark, every message wakes the reader at once.
const (
	lowWater = 128 << 10
	maxWait  = 2 * time.Millisecond

	// window reads that came faster than busyGap each make a stream busy: more
	// than 20,000 a second, of which 2 ms are worth a read.
	window  = 64
	busyGap = 50 * time.Microsecond
	// Below this many bytes a wait, waiting does not pay.
	quietBytes = 4 << 10
)

// coalescer is for one connection. A nil one never waits.
type coalescer struct {
	conn net.Conn
	raw  syscall.RawConn
	busy bool

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
	return &coalescer{conn: conn, raw: raw}
}

// gather waits on a busy stream until it is worth reading, at most until
// deadline. When nothing came for maxWait, the stream is quiet again.
func (c *coalescer) gather(now, deadline time.Time) error {
	if c == nil || !c.busy {
		return nil
	}
	if until := now.Add(maxWait); until.Before(deadline) {
		deadline = until
	}
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	waiting := 0
	err := c.raw.Read(func(fd uintptr) bool {
		waiting = unread(fd)
		return waiting >= lowWater
	})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if waiting < lowWater {
		_ = c.raw.Control(func(fd uintptr) { waiting = unread(fd) }) // as good as nothing waiting
	}
	if waiting == 0 {
		c.quiet()
	}
	return nil
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
		c.busy = setLowWater(c.raw, lowWater)
	case c.busy && c.bytes < window*quietBytes:
		c.quiet()
	}
	c.reads, c.bytes = 0, 0
}
