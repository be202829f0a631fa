package coalesce

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/link"
)

// rhythm is how a sender sends, and in how many segments that may arrive.
type rhythm struct {
	messages, size int
	computing      time.Duration
	segments       int // per 100 messages
}

// The segments of each rhythm at MTU 1,500 are about three times what its bytes fill. A
// socket that is read as it comes gets 90 to 100 of small messages.
var rhythms = map[string]rhythm{
	"a fast sender":  {20_000, 275, 0, 70},
	"a slow sender":  {20_000, 275, 15 * time.Microsecond, 70},
	"large messages": {1_000, 30_000, 0, 4_500},
}

func TestABusyStreamComesInLargeSegments(t *testing.T) {
	needsMark(t)
	for name, r := range rhythms {
		t.Run(name, func(t *testing.T) {
			r.arrives(t, func(t *testing.T) (net.Conn, net.Conn) { t.Helper(); return tcpPair(t) })
		})
		t.Run(name+", TLS", func(t *testing.T) {
			r.arrives(t, func(t *testing.T) (net.Conn, net.Conn) { t.Helper(); a, b := tlsPair(t); return a, b })
		})
	}
}

func TestABusyStreamComesInLargeSegmentsFromAfar(t *testing.T) {
	needsMark(t)
	for _, rtt := range []time.Duration{500 * time.Microsecond, 10 * time.Millisecond} {
		for name, r := range rhythms {
			t.Run(name+" at "+rtt.String(), func(t *testing.T) {
				r.arrives(t, func(t *testing.T) (net.Conn, net.Conn) { t.Helper(); return overLink(t, rtt) })
			})
		}
	}
}

// arrives requires every message, and few segments. A machine that is busy with other
// things may spoil a try, hardly ten of them.
func (r rhythm) arrives(t *testing.T, connect func(t *testing.T) (ours, theirs net.Conn)) {
	t.Helper()
	most := r.messages * r.segments / 100
	segments := most + 1
	for try := 0; try < 10 && segments > most; try++ {
		ours, theirs := connect(t)
		w := newReader(ours)
		before := segmentsOf(w)
		go stream(theirs, r.messages, r.size, r.computing)
		receive(t, w, r.messages)
		segments = segmentsOf(w) - before
		co := coalescerOf(w)
		t.Logf("%d segments; %s, window %d, %.0f bytes/s, pauses of %s", segments, co.roundTrip, co.window, co.rate, co.pauses.longest)
		require.NoError(t, ours.Close())
	}
	assert.LessOrEqual(t, segments, most, "segments for %d messages", r.messages)
}

func segmentsOf(w *reader) int {
	_, t := look(coalescerOf(w).raw)
	return t.segments
}

// overLink returns both ends of a connection over a link, ours dialed.
func overLink(t *testing.T, rtt time.Duration) (ours, theirs net.Conn) {
	t.Helper()
	l := link.New(t, link.Options{RTT: rtt})
	listener, err := l.Listen(link.Far)
	require.NoError(t, err)
	defer listener.Close()
	ours, err = l.Dialer(link.Near, Dialer{}.DialContext)(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	theirs, err = listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// Over a round trip of 40 ms the window grows to what the sender can send in it, and a lone
// message after that comes at once.
func TestTheWindowFollowsTheRoundTrip(t *testing.T) {
	needsMark(t)
	t.Parallel()
	ours, theirs := overLink(t, 40*time.Millisecond)
	w := newReader(ours)
	co := coalescerOf(w)
	assert.False(t, co.near())
	go stream(theirs, 50_000, 275, 0)
	largest := 0
	for range 50_000 {
		_, _, err := w.next(soon())
		require.NoError(t, err)
		largest = max(largest, co.window)
	}
	assert.Greater(t, largest, 2*smallWindow)
	_, _, err := w.next(time.Now().Add(500 * time.Millisecond))
	require.Error(t, err)
	assert.False(t, co.busy, "nothing came: quiet again")
	write(t, theirs, message('d', []byte("alone")))
	_, body, err := w.next(soon())
	require.NoError(t, err)
	assert.Equal(t, "alone", string(body))
}
