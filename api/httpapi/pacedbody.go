package httpapi

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// pacedBody is a body whose client must keep sending: a read fails with
// [os.ErrDeadlineExceeded] after timeout without a byte, or if the whole body is
// later than timeout plus its size at rate, or at end.
type pacedBody struct {
	body    io.Reader
	control *http.ResponseController
	timeout time.Duration
	rate    int64     // bytes per second; 0: none
	end     time.Time // zero: none

	start time.Time // of the first read
	size  int64     // read so far
}

// Read moves the read deadline of the connection. After the last byte the deadline
// is the caller's to move beyond the end of the request: the server takes a passed
// one for a closed connection.
func (b *pacedBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(b.deadline(time.Now())) // fails without a connection, as in tests
	n, err := b.body.Read(p)
	b.size += int64(n)
	if errors.Is(err, io.EOF) && !b.end.IsZero() {
		_ = b.control.SetReadDeadline(b.end.Add(writeMargin))
	}
	return n, err
}

// deadline returns until when the next byte must arrive.
func (b *pacedBody) deadline(now time.Time) time.Time {
	if b.start.IsZero() {
		b.start = now
	}
	deadline := now.Add(b.timeout)
	if b.rate > 0 {
		due := b.start.Add(b.timeout + time.Duration(float64(b.size)/float64(b.rate)*float64(time.Second)))
		deadline = earlier(deadline, due)
	}
	if !b.end.IsZero() {
		deadline = earlier(deadline, b.end)
	}
	return deadline
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
