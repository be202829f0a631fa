package coalesce

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/link"
)

// BenchmarkPath reads messages of 280 bytes from a sender that computes 10 µs for each,
// over links with a round trip and an MTU, coalesced and as they come.
func BenchmarkPath(b *testing.B) {
	dialers := []struct {
		name string
		dial link.DialFunc
	}{{"plain", new(net.Dialer).DialContext}, {"coalesced", Dialer{}.DialContext}}
	for _, mtu := range []int{1500, 9000} {
		for _, rtt := range []time.Duration{0, 200 * time.Microsecond, 500 * time.Microsecond, 2 * time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond} {
			for _, d := range dialers {
				b.Run(fmt.Sprintf("mtu=%d/rtt=%s/%s", mtu, rtt, d.name), func(b *testing.B) {
					readOver(b, link.Options{RTT: rtt, MTU: mtu}, d.dial)
				})
			}
		}
	}
}

func readOver(b *testing.B, o link.Options, dial link.DialFunc) {
	b.Helper()
	l := link.New(b, o)
	listener, err := l.Listen(link.Far)
	require.NoError(b, err)
	defer listener.Close()
	ours, err := l.Dialer(link.Near, dial)(b.Context(), "tcp", listener.Addr().String())
	require.NoError(b, err)
	defer ours.Close()
	theirs, err := listener.Accept()
	require.NoError(b, err)
	defer theirs.Close()
	w := newReader(ours)
	b.ResetTimer()
	go stream(theirs, b.N, 275, 10*time.Microsecond)
	for range b.N {
		_, _, err := w.next(soon())
		require.NoError(b, err)
	}
	_, got := look(socketOf(plainOf(ours)))
	b.ReportMetric(float64(got.segments)/float64(b.N), "segments/op")
}

// plainOf is the connection below the coalescer.
func plainOf(conn net.Conn) net.Conn {
	if c := Of(conn); c != nil {
		return c.Conn
	}
	return conn
}
