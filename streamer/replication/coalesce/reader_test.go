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

// reader reads PostgreSQL messages from conn through src, and notes when they were sent as
// replication.Conn does.
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
				r.noteSent(rest[frameHeader:size])
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

// noteSent notes when the server sent a message, if that is XLogData.
func (r *reader) noteSent(body []byte) {
	if len(body) >= walHeader && body[0] == 'w' {
		Of(r.conn).Sent(int64(binary.BigEndian.Uint64(body[walHeader-8:])))
	}
}

// walHeader is that of XLogData: a type, two positions, the time of sending.
const walHeader = 25

// walData is a message with XLogData, size bytes with its header, and date sets its time of sending.
func walData(size int) []byte {
	return message('d', append([]byte{'w'}, make([]byte, size-1)...))
}

func date(m []byte, sent time.Time) {
	binary.BigEndian.PutUint64(m[frameHeader+walHeader-8:], uint64(sent.UnixMicro()))
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
