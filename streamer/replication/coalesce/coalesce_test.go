package coalesce

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
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
	a, b := tcpPair(t)
	theirs = tls.Server(b, serverTLS(t))
	ours = tls.Client(a, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- theirs.Handshake() }()
	require.NoError(t, ours.Handshake())
	require.NoError(t, <-shaken)
	return ours, theirs
}

// serverTLS has a certificate that no authority has signed.
func serverTLS(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	return &tls.Config{
		Certificates:                []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}},
		DynamicRecordSizingDisabled: true, // one record for each write, as PostgreSQL makes
	}
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

// readers are all the kinds of connection there are, each with a reader of its messages.
func readers(t *testing.T, test func(t *testing.T, w *reader, theirs net.Conn)) {
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
			w := newReader(ours)
			test(t, w, theirs)
		})
	}
}

// coalescerOf is that of a reader's connection, nil when it has none.
func coalescerOf(w *reader) *coalescer {
	if c := Of(w.conn); c != nil {
		return c.co
	}
	return nil
}

// makeBusy is what a sample of quick reads does.
func makeBusy(t testing.TB, w *reader, theirs net.Conn) {
	t.Helper()
	co := coalescerOf(w)
	if co == nil {
		return
	}
	if _, now := look(co.raw); now.segments == 0 {
		write(t, theirs, message('d', nil))
		receive(t, w, 1)
	}
	co.begin(busyRate)
	require.True(t, co.busy)
}

func needsMark(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the low-water mark is for Linux")
	}
}

// Of a connection that is not coalesced the age of its messages does not matter.
func TestOnlyTCPIsCoalesced(t *testing.T) {
	needsMark(t)
	t.Parallel()
	readers(t, func(t *testing.T, w *reader, theirs net.Conn) {
		t.Helper()
		_, unix := theirs.(*net.UnixConn)
		assert.Equal(t, unix, Of(w.conn) == nil)
		Of(w.conn).Sent(1)
		if co := coalescerOf(w); co != nil {
			assert.Equal(t, int64(1), co.age.sent, "below TLS, too")
		}
	})
}

// On a busy stream a lone message still arrives within the time that may be
// waited, and the silence after it makes the stream quiet.
func TestALoneMessageOnABusyStream(t *testing.T) {
	t.Parallel()
	readers(t, func(t *testing.T, w *reader, theirs net.Conn) {
		t.Helper()
		co := coalescerOf(w)
		makeBusy(t, w, theirs)
		write(t, theirs, message('d', []byte("alone")))
		_, body, err := w.next(soon())
		require.NoError(t, err)
		assert.Equal(t, "alone", string(body))

		began := time.Now()
		_, _, err = w.next(began.Add(30 * time.Millisecond))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.GreaterOrEqual(t, time.Since(began), 30*time.Millisecond, "the caller's deadline, not the coalescer's")
		if co != nil {
			assert.False(t, co.busy, "nothing came: quiet again")
		}
		write(t, theirs, message('d', []byte("another")))
		_, body, err = w.next(soon())
		require.NoError(t, err)
		assert.Equal(t, "another", string(body))
	})
}

// There is no delay when there is no time for it: what is there is read, and the
// deadline holds.
func TestANearDeadlineLeavesNoDelay(t *testing.T) {
	t.Parallel()
	readers(t, func(t *testing.T, w *reader, theirs net.Conn) {
		t.Helper()
		makeBusy(t, w, theirs)
		if co := coalescerOf(w); co != nil {
			co.pauses.longest = time.Hour
		}
		write(t, theirs, message('d', []byte("here")))
		_, body, err := w.next(soon())
		require.NoError(t, err)
		assert.Equal(t, "here", string(body))
		_, _, err = w.next(time.Now().Add(20 * time.Millisecond))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
}

// What comes of a TLS record is taken, and its rest is not left to wait for the mark.
func TestARecordInTwoParts(t *testing.T) {
	t.Parallel()
	ours, theirs := tcpPair(t)
	server, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	rest := make(chan struct{})
	go func() { // between the two ends: cuts a record in two
		inner, err := server.Accept()
		if err != nil {
			return
		}
		defer inner.Close()
		go func() { _, _ = io.Copy(inner, theirs) }()
		buf := make([]byte, 64<<10)
		for {
			n, err := inner.Read(buf)
			if err != nil {
				return
			}
			if buf[0] != 23 || n < 3000 { // the handshake, and small records
				_, _ = theirs.Write(buf[:n])
				continue
			}
			_, _ = theirs.Write(buf[:1500])
			<-rest
			_, _ = theirs.Write(buf[1500:n])
		}
	}()
	outer, err := net.Dial("tcp", server.Addr().String())
	require.NoError(t, err)
	defer outer.Close()
	sender := tls.Server(outer, serverTLS(t))
	client := tls.Client(ours, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- sender.Handshake() }()
	require.NoError(t, client.Handshake())
	require.NoError(t, <-shaken)

	w := newReader(client)
	makeBusy(t, w, sender)
	body := bytes.Repeat([]byte("x"), 4000)
	go func() { _, _ = sender.Write(message('d', body)) }()
	_, _, err = w.next(time.Now().Add(50 * time.Millisecond))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	got := make(chan error, 1)
	began := time.Now()
	go func() {
		_, _, err := w.next(began.Add(time.Minute))
		got <- err
	}()
	close(rest)
	require.NoError(t, <-got)
	assert.Less(t, time.Since(began), 30*time.Second, "not at the deadline")
}

func TestTheEndOfABusyStreamIsSeen(t *testing.T) {
	t.Parallel()
	readers(t, func(t *testing.T, w *reader, theirs net.Conn) {
		t.Helper()
		makeBusy(t, w, theirs)
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
	readers(t, func(t *testing.T, w *reader, theirs net.Conn) {
		t.Helper()
		const bursts = 6
		sizes := []int{10, 400, 5_000, smallWindow - 10, smallWindow + 10, 3 * readBuffer}
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
					<-time.After(3 * maxPause)
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
