package replication

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tlsPair returns both ends of a TLS connection, ours in front.
func tlsPair(t testing.TB) (ours, theirs *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	a, b := tcpPair(t)
	theirs = tls.Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}})
	ours = tls.Client(a, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- theirs.Handshake() }()
	require.NoError(t, ours.Handshake())
	require.NoError(t, <-shaken)
	return ours, theirs
}

// unixPair returns both ends of a connection over a unix socket.
func unixPair(t testing.TB) (ours, theirs net.Conn) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	require.NoError(t, err)
	defer listener.Close()
	ours, err = net.Dial("unix", listener.Addr().String())
	require.NoError(t, err)
	theirs, err = listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// wires are all the kinds of connection there are, each with a wire that reads from it.
func wires(t *testing.T, test func(t *testing.T, w *wire, theirs net.Conn)) {
	t.Helper()
	pairs := map[string]func(t testing.TB) (net.Conn, net.Conn){
		"tcp":  func(t testing.TB) (net.Conn, net.Conn) { t.Helper(); a, b := tcpPair(t); return a, b },
		"tls":  func(t testing.TB) (net.Conn, net.Conn) { t.Helper(); a, b := tlsPair(t); return a, b },
		"unix": unixPair,
	}
	for name, pair := range pairs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := pair(t)
			w := newWire(ours)
			w.take(ours)
			test(t, w, theirs)
		})
	}
}

// makeBusy lets the coalescer see a window of quick reads.
func (c *coalescer) makeBusy() {
	start := time.Now()
	for i := range window {
		c.observe(start.Add(time.Duration(i)*time.Microsecond), 400)
	}
}

func needsMark(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the low-water mark is for Linux")
	}
}

func TestTheLowWaterMarkFollowsTheStream(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, _ := taken(t)
	assert.Equal(t, 1, markOf(t, w.co))
	w.co.makeBusy()
	assert.True(t, w.co.busy)
	assert.Equal(t, enough, markOf(t, w.co))

	start := time.Now()
	for range window { // waits that bring enough keep it up
		w.co.observe(start, enough)
	}
	assert.True(t, w.co.busy)
	for range window {
		w.co.observe(start, quietBytes-1)
	}
	assert.False(t, w.co.busy)
	assert.Equal(t, 1, markOf(t, w.co))

	for i := range 2 * window { // reads at leisure do not bring it up again
		w.co.observe(start.Add(time.Duration(i)*busyGap), 400)
	}
	assert.False(t, w.co.busy)
}

func TestOnlyTCPHasAMark(t *testing.T) {
	needsMark(t)
	t.Parallel()
	wires(t, func(t *testing.T, w *wire, theirs net.Conn) {
		t.Helper()
		_, unix := theirs.(*net.UnixConn)
		assert.Equal(t, unix, w.co == nil)
	})
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	w := newWire(ours)
	w.take(ours)
	assert.Nil(t, w.co)
}

// Without the mark everything works, only with more reads.
func TestANilCoalescerNeverWaits(t *testing.T) {
	t.Parallel()
	var c *coalescer
	began := time.Now()
	c.gather(began, began.Add(time.Hour))
	c.observe(began, 1)
}

// On a busy stream a lone message still arrives within the time that may be
// waited, and the silence after it makes the stream quiet.
func TestALoneMessageOnABusyStream(t *testing.T) {
	t.Parallel()
	wires(t, func(t *testing.T, w *wire, theirs net.Conn) {
		t.Helper()
		if w.co != nil {
			w.co.makeBusy()
			require.True(t, w.co.busy)
		}
		write(t, theirs, message('d', []byte("alone")))
		_, body, err := w.next(soon())
		require.NoError(t, err)
		assert.Equal(t, "alone", string(body))

		began := time.Now()
		_, _, err = w.next(began.Add(30 * time.Millisecond))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.GreaterOrEqual(t, time.Since(began), 30*time.Millisecond, "the caller's deadline, not the coalescer's")
		if w.co != nil {
			assert.False(t, w.co.busy, "nothing came: quiet again")
		}
		write(t, theirs, message('d', []byte("another")))
		_, body, err = w.next(soon())
		require.NoError(t, err)
		assert.Equal(t, "another", string(body))
	})
}

// A deadline nearer than the coalescer's own ends the waiting.
func TestANearDeadlineEndsGathering(t *testing.T) {
	t.Parallel()
	wires(t, func(t *testing.T, w *wire, _ net.Conn) {
		t.Helper()
		if w.co != nil {
			w.co.makeBusy()
		}
		_, _, err := w.next(time.Now().Add(-time.Second))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
}

func TestTheEndOfABusyStreamIsSeen(t *testing.T) {
	t.Parallel()
	wires(t, func(t *testing.T, w *wire, theirs net.Conn) {
		t.Helper()
		if w.co != nil {
			w.co.makeBusy()
		}
		write(t, theirs, message('d', []byte("last")))
		require.NoError(t, theirs.Close())
		_, body, err := w.next(soon())
		require.NoError(t, err)
		assert.Equal(t, "last", string(body))
		_, _, err = w.next(soon())
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	})
}

// Bursts, pauses and messages larger than the mark and the buffer: everything
// arrives, in order, in every state of the coalescer.
func TestEverythingArrivesInEveryRhythm(t *testing.T) {
	t.Parallel()
	wires(t, func(t *testing.T, w *wire, theirs net.Conn) {
		t.Helper()
		const bursts = 6
		sizes := []int{10, 400, 5_000, enough - 10, enough + 10, 3 * readBuffer}
		go func() {
			for i := range bursts {
				for j := range 100 {
					body := append(fmt.Appendf(nil, "%d.%d ", i, j), bytes.Repeat([]byte{'x'}, sizes[j%len(sizes)])...)
					if j < 94 {
						body = body[:10]
					}
					if _, err := theirs.Write(message('d', body)); err != nil {
						return
					}
				}
				if i%2 == 0 { // a reader that has caught up finds nothing for a while
					<-time.After(3 * pause)
				}
			}
			theirs.Close()
		}()
		for i := range bursts {
			for j := range 100 {
				_, body, err := w.next(soon())
				require.NoError(t, err)
				require.True(t, bytes.HasPrefix(body, fmt.Appendf(nil, "%d.%d ", i, j)), "%d.%d: %.20q", i, j, body)
			}
		}
		_, _, err := w.next(soon())
		require.Error(t, err)
	})
}

// A stream of small messages crosses in few segments and is read in few reads
// once it is busy. A machine that is busy with other things may spoil a try, hardly ten of them.
func TestABusyStreamComesInLargePieces(t *testing.T) {
	needsMark(t)
	t.Parallel()
	const n, few = 20_000, 2_500
	reads, pieces := n, n
	for try := 0; try < 10 && (reads > few || pieces > few); try++ {
		w, theirs := taken(t)
		counted := &countingConn{Conn: w.conn}
		w.src = counted
		w.co.makeBusy()
		go func() {
			m := message('d', bytes.Repeat([]byte("x"), 395))
			for range n { // each a system call of its own, as the walsender sends
				if _, err := theirs.Write(m); err != nil {
					return
				}
			}
		}()
		for range n {
			_, _, err := w.next(soon())
			require.NoError(t, err)
		}
		reads, pieces = counted.reads, segments(w.co.raw)
		t.Logf("%d messages: %d segments, %d reads", n, pieces, reads)
	}
	assert.LessOrEqual(t, reads, few, "reads for %d messages", n)
	assert.LessOrEqual(t, pieces, few, "segments for %d messages", n)
}

type countingConn struct {
	net.Conn
	reads int
}

func (c *countingConn) Read(p []byte) (int, error) {
	c.reads++
	return c.Conn.Read(p)
}
