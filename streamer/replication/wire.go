package replication

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"diehard/shared/event"
)

const (
	// readBuffer holds several windows.
	readBuffer = 256 << 10
	// maxWhole is the size up to which a message is lent out whole, far more than an event
	// can have. Others choose how large a row or a message is: of one that is larger the
	// first maxWhole bytes are lent out, and the rest is read past.
	maxWhole = 2 * event.MaxContextBytes
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
	skip int // bytes that follow of a message whose head was lent out

	progress bool // bytes came since progressed was last called

	conn net.Conn // what src reads from; set by attach, for deadlines
}

func newWire(src io.Reader) *wire { return &wire{src: src, buf: make([]byte, readBuffer)} }

// attach makes w the owner of conn, from which its source reads, after pgconn has given it up.
func (w *wire) attach(conn net.Conn) { w.conn = conn }

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
// as bytes have really arrived, and to less than four times maxWhole.
func (w *wire) read() error {
	w.makeRoom()
	n, err := w.src.Read(w.buf[w.w:])
	w.w += n
	if n > 0 {
		w.progress = true
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (w *wire) makeRoom() {
	if w.r == w.w {
		w.r, w.w = 0, 0
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

// received is one message: its type, its body up to maxWhole, and the size of all of its body.
type received struct {
	typ  byte
	body []byte
	size int
}

// buffered reports that next returns a message without reading.
func (w *wire) buffered() bool {
	w.readPast()
	n, ok := w.frame()
	return w.skip == 0 && ok && w.w-w.r >= min(n, maxWhole)
}

// progressed reports that bytes came since the last call: a large message takes its time.
func (w *wire) progressed() bool {
	was := w.progress
	w.progress = false
	return was
}

// readPast drops what has come of the rest of a message whose head was lent out.
func (w *wire) readPast() {
	n := min(w.skip, w.w-w.r)
	w.skip -= n
	w.r += n
}

// next returns the next message, waiting until deadline. Its body is valid until
// the following call.
//
// Errors: os.ErrDeadlineExceeded leaves the stream intact; any other ends it.
func (w *wire) next(deadline time.Time) (received, error) {
	for {
		w.readPast()
		if n, ok := w.frame(); ok && w.skip == 0 {
			if n < frameHeader || n > maxFrame {
				return received{}, fmt.Errorf("message of %d bytes: the stream is corrupt", n)
			}
			if head := min(n, maxWhole); w.w-w.r >= head {
				f := received{w.buf[w.r], w.buf[w.r+frameHeader : w.r+head], n - frameHeader}
				w.r, w.skip = w.r+head, n-head
				return f, nil
			}
		}
		if err := w.wait(deadline); err != nil {
			return received{}, err
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
