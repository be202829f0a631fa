package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"diehard/shared/dev/await"
	"diehard/streamer/replication/coalesce"
)

// message is a PostgreSQL message: a type, the length of all but the type, a body.
func message(typ byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{typ}, uint32(4+len(body)))
	return append(b, body...)
}

// soon is a deadline that a test which works never reaches.
func soon() time.Time { return time.Now().Add(await.Limit) }

// tcpPair returns both ends of a connection over the loopback interface.
func tcpPair(t testing.TB) (ours, theirs net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	client, err := coalesce.Dialer{}.DialContext(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	server, err := listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// After pgconn has read the answer to START_REPLICATION it lets go: what the server
// sent behind it must still be there, in the same segment or in what pgconn's
// background reader has already taken from the socket.
func TestReadStopsAtTheEndOfAMessage(t *testing.T) {
	t.Parallel()
	first, second, third := message('W', []byte("ready")), message('d', []byte("one")), message('d', []byte("two"))
	all := bytes.Join([][]byte{first, second, third}, nil)
	for name, cut := range map[string]func(io.Reader) io.Reader{
		"in one segment": func(r io.Reader) io.Reader { return r },
		"byte by byte":   iotest.OneByteReader,
		"in halves":      iotest.HalfReader,
		"data with EOF":  iotest.DataErrReader,
	} {
		for _, ahead := range []int{0, len(first), len(first) + 3, len(first) + len(second), len(all)} {
			for _, size := range []int{1, 2, 5, 7, 1000} {
				t.Run(fmt.Sprintf("%s into %d, %d read ahead", name, size, ahead), func(t *testing.T) {
					t.Parallel()
					ours, theirs := tcpPair(t)
					_, err := theirs.Write(all[ahead:])
					require.NoError(t, err)
					require.NoError(t, theirs.(*net.TCPConn).CloseWrite())
					w := newWire(cut(io.MultiReader(bytes.NewReader(all[:ahead]), ours)))
					got := make([]byte, 0, len(first))
					for len(got) < len(first) {
						p := make([]byte, size)
						n, err := w.Read(p)
						require.NoError(t, err)
						got = append(got, p[:n]...)
					}
					require.Equal(t, first, got, "exactly the first message")

					w.attach(ours)
					for _, want := range []string{"one", "two"} {
						typ, body, err := w.whole(soon())
						require.NoError(t, err)
						assert.Equal(t, byte('d'), typ)
						assert.Equal(t, want, string(body))
					}
					_, _, err = w.whole(soon())
					assert.ErrorIs(t, err, io.EOF)
				})
			}
		}
	}
}

// Messages of any size, sent in pieces of any size, come out as they went in,
// whatever part of them pgconn reads.
func TestMessagesSurviveAnyCut(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(60_000, 300_000)), 1, 5).Draw(t, "sizes")
		cuts := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(1, 200_000)), 1, 20).Draw(t, "cuts")
		taken := rapid.IntRange(0, len(sizes)).Draw(t, "taken")
		var all []byte
		for i, n := range sizes {
			all = append(all, message(byte('a'+i), bytes.Repeat([]byte{byte(i)}, n))...)
		}
		conn := &cutConn{rest: all, cuts: cuts}
		w := newWire(conn)
		for i, n := range sizes[:taken] {
			body := make([]byte, frameHeader+n)
			_, err := io.ReadFull(w, body)
			require.NoError(t, err)
			require.Equal(t, message(byte('a'+i), bytes.Repeat([]byte{byte(i)}, n)), body)
		}
		w.attach(conn)
		for i, n := range sizes[taken:] {
			typ, body, err := w.whole(soon())
			require.NoError(t, err)
			require.Equal(t, byte('a'+taken+i), typ)
			require.Equal(t, bytes.Repeat([]byte{byte(taken + i)}, n), body)
		}
		_, _, err := w.whole(soon())
		require.ErrorIs(t, err, io.EOF)
	})
}

// taken returns a wire that reads from one end, and the other end.
func taken(t testing.TB) (*wire, net.Conn) {
	t.Helper()
	ours, theirs := tcpPair(t)
	w := newWire(ours)
	w.attach(ours)
	return w, theirs
}

// whole is next for messages that are not too large for that.
func (w *wire) whole(deadline time.Time) (byte, []byte, error) {
	got, err := w.next(deadline)
	if err == nil && got.size != len(got.body) {
		return 0, nil, fmt.Errorf("%d of %d bytes", len(got.body), got.size)
	}
	return got.typ, got.body, err
}

func write(t testing.TB, c net.Conn, b []byte) {
	t.Helper()
	_, err := c.Write(b)
	require.NoError(t, err)
}

func TestADeadlineLeavesTheStreamIntact(t *testing.T) {
	t.Parallel()
	w, theirs := taken(t)
	whole := message('d', []byte("payload"))
	for _, piece := range [][]byte{whole[:3], whole[3:9]} {
		write(t, theirs, piece)
		began := time.Now()
		_, _, err := w.whole(began.Add(20 * time.Millisecond))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.GreaterOrEqual(t, time.Since(began), 20*time.Millisecond)
		assert.False(t, w.buffered())
	}
	write(t, theirs, append(whole[9:len(whole):len(whole)], message('k', nil)...))
	_, body, err := w.whole(soon())
	require.NoError(t, err)
	assert.Equal(t, "payload", string(body))
}

func TestWhatIsBufferedNeedsNoWaiting(t *testing.T) {
	t.Parallel()
	w, theirs := taken(t)
	assert.False(t, w.buffered())
	write(t, theirs, bytes.Join([][]byte{message('d', []byte("one")), message('d', []byte("two")), message('d', []byte("three"))[:7]}, nil))
	past := time.Now().Add(-time.Hour)
	await.True(t, func() bool { // until the kernel has passed it on
		_, body, err := w.whole(time.Now().Add(time.Millisecond))
		return err == nil && string(body) == "one"
	}, "the whole message is there")
	require.True(t, w.buffered())
	_, body, err := w.whole(past)
	require.NoError(t, err, "no deadline matters")
	assert.Equal(t, "two", string(body))
	assert.False(t, w.buffered(), "the third is incomplete")
	_, _, err = w.whole(past)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestCorruptLengthsEndTheStream(t *testing.T) {
	t.Parallel()
	for _, length := range []uint32{0, 1, 2, 3, 1 << 30, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
		w, theirs := taken(t)
		write(t, theirs, binary.BigEndian.AppendUint32([]byte{'d'}, length))
		_, _, err := w.whole(soon())
		require.ErrorContains(t, err, "the stream is corrupt", "length %d", length)
		assert.LessOrEqual(t, len(w.buf), readBuffer)
	}
}

// Before the stream begins, pgconn judges: it must get to see the header.
func TestReadHandsOutACorruptHeader(t *testing.T) {
	t.Parallel()
	for _, length := range []uint32{0, 1, 2, 3, 1<<32 - 1} {
		header := binary.BigEndian.AppendUint32([]byte{'R'}, length)
		w := newWire(bytes.NewReader(header))
		got := make([]byte, frameHeader)
		_, err := io.ReadFull(w, got)
		require.NoError(t, err, "length %d", length)
		assert.Equal(t, header, got)
	}
}

// largestBuffer is what readBuffer grows to for a message of maxWhole.
const largestBuffer = 2 * maxWhole

// Only bytes that have arrived take memory, and a large message does not keep it.
func TestTheBufferFollowsWhatArrives(t *testing.T) {
	t.Parallel()
	w, theirs := taken(t)
	write(t, theirs, append(binary.BigEndian.AppendUint32([]byte{'d'}, maxFrame-1), "a few bytes of a claimed gigabyte"...))
	_, _, err := w.whole(time.Now().Add(20 * time.Millisecond))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.Len(t, w.buf, readBuffer)

	w, theirs = taken(t)
	large := bytes.Repeat([]byte("x"), 6*maxWhole)
	go func() {
		for range 3 {
			_, _ = theirs.Write(message('d', large))
		}
		_, _ = theirs.Write(message('d', []byte("small")))
	}()
	for range 3 {
		got, err := w.next(soon())
		require.NoError(t, err)
		require.Len(t, got.body, maxWhole-frameHeader, "the beginning")
		require.Equal(t, len(large), got.size)
		assert.LessOrEqual(t, len(w.buf), largestBuffer)
	}
	_, body, err := w.whole(soon())
	require.NoError(t, err)
	assert.Equal(t, "small", string(body))
	_, _, err = w.whole(time.Now().Add(time.Millisecond))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.Contains(t, []int{largestBuffer / 2, largestBuffer}, len(w.buf), "kept for the next large one; how large depends on the pieces")
}

// A message that is too large is read past, whatever pieces it comes in and however often
// its reader's time is over meanwhile; those around it come out as they went in.
func TestTheRestOfALargeMessageIsReadPast(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(maxWhole-10, maxWhole+10),
			rapid.IntRange(maxWhole, 6*maxWhole)), 1, 4).Draw(t, "sizes")
		cuts := rapid.SliceOfN(rapid.IntRange(1000, 4*maxWhole), 1, 20).Draw(t, "cuts")
		late := rapid.IntRange(2, 7).Draw(t, "late")
		var all []byte
		for i, n := range sizes {
			all = append(all, message(byte('a'+i), bytes.Repeat([]byte{byte(i)}, n))...)
		}
		conn := &cutConn{rest: all, cuts: cuts, late: late}
		w := newWire(conn)
		w.attach(conn)
		for i, n := range sizes {
			got, err := w.next(soon())
			for errors.Is(err, os.ErrDeadlineExceeded) {
				got, err = w.next(soon())
			}
			require.NoError(t, err)
			require.Equal(t, byte('a'+i), got.typ)
			require.Equal(t, n, got.size)
			require.Equal(t, bytes.Repeat([]byte{byte(i)}, min(n, maxWhole-frameHeader)), got.body)
			require.LessOrEqual(t, len(w.buf), largestBuffer)
		}
	})
}

// An event of the largest size keeps its buffer, or every one would grow it anew.
func TestTheBufferForTheLargestEventIsKept(t *testing.T) {
	t.Parallel()
	w, theirs := taken(t)
	body := bytes.Repeat([]byte("x"), 1<<20+500)
	go func() {
		for range 2 {
			_, _ = theirs.Write(message('d', body))
		}
	}()
	_, _, err := w.whole(soon())
	require.NoError(t, err)
	grown := &w.buf[0]
	_, got, err := w.whole(soon())
	require.NoError(t, err)
	assert.Len(t, got, len(body))
	assert.Same(t, grown, &w.buf[0])
}

func FuzzWire(f *testing.F) {
	f.Add(message('d', []byte("one")), uint8(3), uint8(0))
	f.Add(append(message('W', nil), message('d', bytes.Repeat([]byte("x"), 100))...), uint8(1), uint8(1))
	f.Add([]byte{'d', 0, 0, 0, 3}, uint8(5), uint8(0))
	f.Add([]byte{'d', 255, 255, 255, 255, 0}, uint8(5), uint8(2))
	f.Fuzz(func(t *testing.T, stream []byte, cut, reads uint8) {
		conn := &cutConn{rest: stream, cuts: []int{int(cut)%64 + 1}}
		w := newWire(conn)
		rest := stream
		for range reads % 4 { // pgconn reads some messages first
			if len(rest) < frameHeader {
				break
			}
			n := min(len(rest), 1+int(binary.BigEndian.Uint32(rest[1:])))
			got := make([]byte, max(n, frameHeader))
			if _, err := io.ReadFull(w, got); err != nil {
				return
			}
			require.Equal(t, rest[:len(got)], got)
			rest = rest[len(got):]
		}
		w.attach(conn)
		for {
			typ, body, err := w.whole(time.Time{})
			if err != nil {
				require.LessOrEqual(t, len(w.buf), max(readBuffer, 4*len(stream)))
				return
			}
			want := rest[:frameHeader+len(body)]
			require.Equal(t, want, message(typ, body))
			rest = rest[len(want):]
		}
	})
}

// cutConn gives out a stream in pieces, their sizes in turn, and then ends.
type cutConn struct {
	net.Conn
	rest []byte
	cuts []int
	next int
	late int // of so many reads one has no more time; 0 for none
	asks int
}

func (c *cutConn) SetReadDeadline(time.Time) error { return nil }

func (c *cutConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	if c.asks++; c.late > 0 && c.asks%c.late == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(p[:min(len(p), c.cuts[c.next%len(c.cuts)])], c.rest)
	c.next++
	c.rest = c.rest[n:]
	return n, nil
}

// One iteration is a message of the size of a usual event, from a socket.
func BenchmarkNext(b *testing.B) {
	w, theirs := taken(b)
	m := message('d', bytes.Repeat([]byte("x"), 400))
	chunk := bytes.Repeat(m, 500)
	go func() {
		for {
			if _, err := theirs.Write(chunk); err != nil {
				return
			}
		}
	}()
	b.SetBytes(int64(len(m)))
	b.ReportAllocs()
	deadline := time.Now().Add(time.Hour)
	for b.Loop() {
		if _, _, err := w.whole(deadline); err != nil {
			b.Fatal(err)
		}
	}
}
