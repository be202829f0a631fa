package replication

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	// readBuffer holds several windows.
	readBuffer = 256 << 10
	// keepBuffer is the most that is kept after a larger message has passed: it
	// takes an event of the size limit.
	keepBuffer = 4 << 20
	// frameHeader is a message's type byte and length.
	frameHeader = 5
	// maxFrame is PostgreSQL's own bound on a message (PQ_LARGE_MESSAGE_LIMIT).
	maxFrame = 1<<30 - 1
)

// wire is the receive side of a PostgreSQL connection: it owns the read buffer,
// cuts it into messages, and lends them out without copying.
//
// Until replication starts, pgconn reads through Read, which never hands out
// bytes beyond the message it is in. What follows the last such message is still
// here when wire takes over. The source stays the same: after a write that took
// long, pgconn reads ahead in the background, and what it has read by then comes
// from there and nowhere else. Not safe for concurrent use.
type wire struct {
	src  io.Reader
	buf  []byte
	r, w int // unread bytes are buf[r:w]
	left int // bytes of the message Read is in

	conn net.Conn // what src reads from; set by take, for deadlines
}

func newWire(src io.Reader) *wire { return &wire{src: src, buf: make([]byte, readBuffer)} }

// take makes w the owner of conn, from which its source reads, after pgconn has given it up.
func (w *wire) take(conn net.Conn) { w.conn = conn }

// Read serves pgconn: at most the rest of one message.
func (w *wire) Read(p []byte) (int, error) {
	for w.left == 0 {
		if n, ok := w.frame(); ok {
			w.left = max(n, frameHeader) // a length that is too small is pgconn's to refuse
			break
		}
		if err := w.read(); err != nil {
			return 0, err
		}
	}
	if w.r == w.w {
		if err := w.read(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.buf[w.r:min(w.w, w.r+w.left)])
	w.r += n
	w.left -= n
	return n, nil
}

// frame returns the size of the message at r once its header is there.
func (w *wire) frame() (int, bool) {
	if w.w-w.r < frameHeader {
		return 0, false
	}
	return 1 + int(binary.BigEndian.Uint32(w.buf[w.r+1:])), true
}

// read appends what the source has. It makes room first, growing only as far
// as bytes have really arrived.
func (w *wire) read() error {
	w.room()
	n, err := w.src.Read(w.buf[w.w:])
	w.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (w *wire) room() {
	if w.r == w.w {
		w.r, w.w = 0, 0
		if len(w.buf) > keepBuffer {
			w.buf = make([]byte, readBuffer)
		}
		return
	}
	if len(w.buf)-w.w >= readBuffer/4 {
		return
	}
	if w.r > 0 {
		w.w = copy(w.buf, w.buf[w.r:w.w])
		w.r = 0
	}
	if len(w.buf)-w.w < readBuffer/4 {
		grown := make([]byte, 2*len(w.buf))
		copy(grown, w.buf[:w.w])
		w.buf = grown
	}
}

// buffered reports that a whole message can be had without reading.
func (w *wire) buffered() bool {
	n, ok := w.frame()
	return ok && w.w-w.r >= n
}

// next returns the type and body of the next message, waiting until deadline.
// The body is valid until the following call.
//
// Errors: os.ErrDeadlineExceeded leaves the stream intact; any other ends it.
func (w *wire) next(deadline time.Time) (byte, []byte, error) {
	for {
		if n, ok := w.frame(); ok {
			if n < frameHeader || n > maxFrame {
				return 0, nil, fmt.Errorf("message of %d bytes: the stream is corrupt", n)
			}
			if w.w-w.r >= n {
				typ, body := w.buf[w.r], w.buf[w.r+frameHeader:w.r+n]
				w.r += n
				return typ, body, nil
			}
		}
		if err := w.wait(deadline); err != nil {
			return 0, nil, err
		}
	}
}

// wait reads once.
func (w *wire) wait(deadline time.Time) error {
	if err := w.conn.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("set read deadline: %w", err)
	}
	return w.read()
}
