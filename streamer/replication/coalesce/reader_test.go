package coalesce

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

// readBuffer is larger than any window, as the buffer of package replication is.
const readBuffer = 256 << 10

// frameHeader is a PostgreSQL message's type byte and length.
const frameHeader = 5

// reader reads PostgreSQL messages from conn through src.
type reader struct {
	conn net.Conn
	src  io.Reader
	buf  []byte
	n    int // bytes of buf that were read
	used int // bytes of buf that were returned
}

func newReader(conn net.Conn) *reader {
	return &reader{conn: conn, src: conn, buf: make([]byte, 8*readBuffer)}
}

// next returns the next message, waiting until deadline.
func (r *reader) next(deadline time.Time) (byte, []byte, error) {
	for {
		if rest := r.buf[r.used:r.n]; len(rest) >= frameHeader {
			if size := 1 + int(binary.BigEndian.Uint32(rest[1:])); len(rest) >= size {
				r.used += size
				return rest[0], rest[frameHeader:size], nil
			}
		}
		if len(r.buf)-r.n < readBuffer {
			r.n = copy(r.buf, r.buf[r.used:r.n])
			r.used = 0
		}
		if err := r.conn.SetReadDeadline(deadline); err != nil {
			return 0, nil, err
		}
		n, err := r.src.Read(r.buf[r.n:])
		if r.n += n; n == 0 {
			return 0, nil, err
		}
	}
}

// message is a PostgreSQL message: a type, the length of all but the type, a body.
func message(typ byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{typ}, uint32(4+len(body)))
	return append(b, body...)
}

func write(t testing.TB, c net.Conn, b []byte) {
	t.Helper()
	_, err := c.Write(b)
	require.NoError(t, err)
}

// soon is a deadline that a test which works never reaches.
func soon() time.Time { return time.Now().Add(await.Limit) }

// tcpPair returns both ends of a connection over the loopback interface, ours dialed.
func tcpPair(t testing.TB) (ours, theirs net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	client, err := Dialer{}.DialContext(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	server, err := listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// taken returns a reader of one end, and the other end.
func taken(t testing.TB) (*reader, net.Conn) {
	t.Helper()
	ours, theirs := tcpPair(t)
	return newReader(ours), theirs
}
