package simnet

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// capacity is what a connection holds in each direction before writes wait, in bytes.
const capacity = 256 << 10

// Conn is one end of a connection.
type Conn struct {
	net    *Network
	host   *Host
	peer   *Conn
	cond   *sync.Cond
	random *rand.Rand // of the delays of what this end sends
	name   string     // of the other side

	in        []packet // sent to this end and not yet read
	size      int      // bytes in in
	last      time.Time
	closed    bool // by this end
	broken    bool // no write can arrive any more
	silent    bool // closed by this end, and the other one does not hear of it
	holdUntil time.Time

	readDeadline, writeDeadline time.Time
	wake                        *time.Timer
}

type packet struct {
	data []byte
	at   time.Time // when it arrives
	held bool      // its sender is frozen
	err  error     // instead of data: the connection ends with it
}

func newConn(n *Network, host *Host, r *rand.Rand, name string) *Conn {
	return &Conn{net: n, host: host, cond: sync.NewCond(&n.mu), random: r, name: name}
}

// send queues p for the peer.
func (c *Conn) send(p packet) {
	if c.peer.silent {
		return
	}
	if c.peer.closed {
		c.broken = true // the next write fails, as the answer to the first one says
		return
	}
	p.at = time.Now().Add(c.net.delay(c.random))
	for _, least := range []time.Time{c.peer.last, c.holdUntil} {
		if p.at.Before(least) {
			p.at = least
		}
	}
	p.held = c.host.frozen
	c.peer.last = p.at
	c.peer.in = append(c.peer.in, p)
	c.peer.size += len(p.data)
	c.peer.cond.Broadcast()
}

// release lets what its sender held arrive.
func (c *Conn) release(delay Delay) {
	for i := range c.in {
		if p := &c.in[i]; p.held {
			p.held = false
			if at := time.Now().Add(delay(c.random)); at.After(p.at) {
				p.at = at
			}
			if p.at.Before(c.last) {
				p.at = c.last
			}
			c.last = p.at
		}
	}
	c.cond.Broadcast()
}

func (c *Conn) dropHeld() {
	c.in = slices.DeleteFunc(c.in, func(p packet) bool { return p.held && p.err == nil })
}

// cut ends both directions.
func (c *Conn) cut(lost bool) {
	for _, end := range []*Conn{c, c.peer} {
		if lost {
			end.in, end.size = nil, 0
		}
		end.broken = true
		end.in = append(end.in, packet{at: time.Now(), err: os.NewSyscallError("read", syscall.ECONNRESET)})
		end.cond.Broadcast()
	}
}

// shut closes this end; the other one reads what was sent, if in order, and then the end.
func (c *Conn) shut(inOrder bool) {
	if c.closed {
		return
	}
	c.closed = true
	end := io.EOF
	if !inOrder {
		end = os.NewSyscallError("read", syscall.ECONNRESET)
	}
	c.send(packet{err: end})
	c.in, c.size = nil, 0
	if c.wake != nil {
		c.wake.Stop()
	}
	c.cond.Broadcast()
	c.peer.cond.Broadcast()
	if c.peer.closed {
		delete(c.net.conns, c)
		delete(c.net.conns, c.peer)
	}
}

// Vanish closes this end, and the network swallows what would tell the other one.
func (c *Conn) Vanish() {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if !c.closed {
		c.silent, c.closed = true, true
		c.in, c.size = nil, 0
		c.cond.Broadcast()
	}
}

// wait blocks until something changes, or until at.
func (c *Conn) wait(at time.Time) {
	if !at.IsZero() {
		d := time.Until(at)
		if c.wake == nil {
			c.wake = time.AfterFunc(d, func() {
				c.net.mu.Lock()
				defer c.net.mu.Unlock()
				c.cond.Broadcast()
			})
		} else {
			c.wake.Reset(d)
		}
	}
	c.cond.Wait()
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// Read returns what has arrived.
func (c *Conn) Read(p []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, c.opError("read", net.ErrClosed)
		case c.host.frozen: // it notices nothing
			c.cond.Wait()
			continue
		case passed(c.readDeadline):
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		}
		until := c.readDeadline
		if len(c.in) > 0 && !c.in[0].held {
			head := &c.in[0]
			if !time.Now().Before(head.at) {
				return c.take(p, head)
			}
			until = earliest(until, head.at)
		}
		c.wait(until)
	}
}

func (c *Conn) take(p []byte, head *packet) (int, error) {
	if head.err == io.EOF { //nolint:errorlint // it was put there as it is
		return 0, io.EOF
	}
	if head.err != nil {
		return 0, c.opError("read", head.err)
	}
	n := copy(p, head.data)
	head.data = head.data[n:]
	if len(head.data) == 0 {
		c.in = c.in[1:]
	}
	c.size -= n
	c.peer.cond.Broadcast() // a writer may wait for room
	return n, nil
}

// Write hands p to the network. It waits while too much is under way.
func (c *Conn) Write(p []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, c.opError("write", net.ErrClosed)
		case c.host.frozen:
			c.cond.Wait()
			continue
		case c.broken:
			return 0, c.opError("write", os.NewSyscallError("write", syscall.EPIPE))
		case passed(c.writeDeadline):
			return 0, c.opError("write", os.ErrDeadlineExceeded)
		case c.peer.size < capacity:
			c.send(packet{data: slices.Clone(p)})
			return len(p), nil
		}
		c.wait(c.writeDeadline)
	}
}

// Close ends this side at once.
func (c *Conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.shut(true)
	return nil
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return c.setDeadlines(func() { c.readDeadline, c.writeDeadline = t, t })
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.setDeadlines(func() { c.readDeadline = t })
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadlines(func() { c.writeDeadline = t })
}

func (c *Conn) setDeadlines(set func()) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	set()
	c.cond.Broadcast()
	return nil
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "sim", Addr: addr(c.name), Err: err}
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return addr(c.host.Name + ":1") }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return addr(c.name) }

type addr string

func (addr) Network() string  { return "sim" }
func (a addr) String() string { return string(a) }
