package link

import (
	"context"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

// connect returns the two ends of a connection over a link.
func connect(t *testing.T, l *Link) (near, far net.Conn) {
	t.Helper()
	listener, err := l.Listen(Far)
	require.NoError(t, err)
	defer listener.Close()
	near, err = l.Dialer(Near, new(net.Dialer).DialContext)(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	far, err = listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// A byte there and back never takes less than was asked for, and when the machine has
// time not much more.
func TestTheRoundTripIsWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	for _, rtt := range []time.Duration{0, 2 * time.Millisecond, 40 * time.Millisecond} {
		t.Run(rtt.String(), func(t *testing.T) {
			t.Parallel()
			near, far := connect(t, New(t, Options{RTT: rtt}))
			go func() { _, _ = io.Copy(far, far) }()
			await.True(t, func() bool {
				began := time.Now()
				_, err := near.Write([]byte{1})
				require.NoError(t, err)
				_, err = io.ReadFull(near, make([]byte, 1))
				require.NoError(t, err)
				took := time.Since(began)
				require.GreaterOrEqual(t, took, rtt)
				return took < rtt+2*time.Millisecond
			}, "a round trip of %s", rtt)
		})
	}
}

func TestEverythingCrossesInOrder(t *testing.T) {
	t.Parallel()
	for _, mtu := range []int{1500, 9000} {
		near, far := connect(t, New(t, Options{RTT: time.Millisecond, MTU: mtu}))
		sent := strings.Repeat("0123456789abcdef!", 100_000)
		go func() {
			_, _ = io.WriteString(far, sent)
			_ = far.Close()
		}()
		got, err := io.ReadAll(near)
		require.NoError(t, err)
		require.Len(t, got, len(sent))
		assert.Equal(t, sent, string(got))
	}
}

// Each namespace has its own addresses, and this process none of them.
func TestTheAddressesAreTheLinksAlone(t *testing.T) {
	t.Parallel()
	a, b := New(t, Options{MTU: 9000}), New(t, Options{})
	for l, mtu := range map[*Link]string{a: "mtu 9000", b: "mtu 1500"} {
		var out strings.Builder
		cmd := exec.CommandContext(t.Context(), "ip", "address")
		cmd.Stdout = &out
		require.NoError(t, l.Start(Near, cmd))
		require.NoError(t, cmd.Wait())
		assert.Contains(t, out.String(), "inet "+l.Address(Near).String()+" ")
		assert.Contains(t, out.String(), mtu)
	}
	local, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, address := range local {
		assert.False(t, strings.HasPrefix(address.String(), a.Address(Near).String()+"/"), "%s is outside the link", address)
	}
}

// With Here a plain connection of this process crosses the link, whose round trip and MTU
// can be changed.
func TestTheNearEndCanBeHere(t *testing.T) {
	t.Parallel()
	l := New(t, Options{Here: true})
	listener, err := l.Listen(Far)
	require.NoError(t, err)
	defer listener.Close()
	require.NoError(t, l.Set(Options{RTT: 20 * time.Millisecond, MTU: 9000}))
	began := time.Now()
	near, err := new(net.Dialer).DialContext(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	defer near.Close()
	assert.GreaterOrEqual(t, time.Since(began), 20*time.Millisecond)
	assert.Equal(t, l.Address(Near).String(), near.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Prev().String())
	device, err := net.InterfaceByName(l.devices[Near])
	require.NoError(t, err)
	assert.Equal(t, 9000, device.MTU)
	l.Close()
	await.True(t, func() bool {
		_, err := net.InterfaceByName(l.devices[Near])
		return err != nil
	}, "the device stays")
}

// A round trip is one, however many packets it has; what is sent meanwhile adds none.
func TestRoundTripsAreCounted(t *testing.T) {
	t.Parallel()
	l := New(t, Options{RTT: 20 * time.Millisecond})
	near, far := connect(t, l)
	assert.Zero(t, l.RoundTrips(), "to connect carries no data")
	pass := func(from, to net.Conn) {
		_, err := from.Write(make([]byte, 10_000))
		require.NoError(t, err)
		_, err = io.ReadFull(to, make([]byte, 10_000))
		require.NoError(t, err)
	}
	for n := range int64(3) {
		pass(near, far)
		pass(near, far)
		pass(far, near)
		pass(far, near)
		assert.Equal(t, n+1, l.RoundTrips())
	}
}

func TestAClosedLinkCarriesNothing(t *testing.T) {
	t.Parallel()
	l := New(t, Options{})
	near, far := connect(t, l)
	l.Close()
	_, err := far.Write([]byte{1})
	require.NoError(t, err)
	require.NoError(t, near.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = near.Read(make([]byte, 1))
	require.Error(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = l.Dialer(Near, new(net.Dialer).DialContext)(ctx, "tcp", net.JoinHostPort(l.Address(Far).String(), "1"))
	require.Error(t, err)
}
