// Package link joins two network namespaces with a link that has a round trip and an
// MTU, as a server that is some way off has. Tests and benchmarks share it. Nothing
// outside of the two namespaces changes, unless Here is asked for, and all of it ends with
// the process at the latest.
package link

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// End is one of the two ends of a link.
type End int

// The ends are alike. By convention the server is at Far.
const (
	Near End = iota
	Far
)

// addressesOf returns the addresses of the ends: a pair of those for documentation
// (RFC 5737), which no network has.
func addressesOf(pair byte) [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, 2*pair + 1}), netip.AddrFrom4([4]byte{198, 51, 100, 2*pair + 2})}
}

// Options of a link.
type Options struct {
	RTT time.Duration // what the link adds to a round trip
	MTU int           // 0 means 1,500
	// Offload makes the devices take what a socket sends in pieces of up to 64 KB, as most network
	// cards do (TCP segmentation offload). The link counts them as the segments that a wire carries,
	// and hands them on as they are, as cards that gather what comes do.
	Offload bool
	// Here makes the near end a device of this process's own namespace, so that each program of
	// the machine reaches the far end.
	Here bool
}

// ErrUnavailable says why this machine cannot have a link.
var ErrUnavailable = errors.New("no delayed link here")

// Link is open until Close.
type Link struct {
	addresses [2]netip.Addr
	spaces    [2]*os.File // network namespaces; nil for the process's own
	tunnels   [2]*os.File
	devices   [2]string
	pumps     sync.WaitGroup
	delay     atomic.Int64 // nanoseconds one way
	trips     [2]atomic.Int64
	segments  [2]atomic.Int64
}

// New opens a link for a test, which is skipped where there can be none.
func New(t testing.TB, o Options) *Link {
	t.Helper()
	l, err := Open(o)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// Address of an end, which only the two namespaces know.
func (l *Link) Address(end End) netip.Addr { return l.addresses[end] }

// Listen listens at an end on a free port.
func (l *Link) Listen(end End) (listener net.Listener, err error) {
	err = l.Within(end, func() error {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(l.addresses[end], 0).String())
		return err
	})
	return listener, err
}

// Start starts a command at an end.
func (l *Link) Start(end End, cmd *exec.Cmd) error {
	return l.Within(end, cmd.Start)
}

// DialFunc is what net.Dialer.DialContext is.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Dialer returns dial, to be used at an end. Addresses are literal ones.
func (l *Link) Dialer(end End, dial DialFunc) DialFunc {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = l.Within(end, func() error {
			conn, err = dial(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// Close ends the link. Connections over it are not closed: they lose their packets.
func (l *Link) Close() {
	for _, f := range l.tunnels {
		if f != nil {
			_ = f.Close() // nothing is kept in it
		}
	}
	l.pumps.Wait()
	for _, f := range l.spaces {
		if f != nil {
			_ = f.Close() // the namespace goes with its last user
		}
	}
}

// run runs a program to its end.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput() //nolint:noctx // it does not wait
	if err != nil {
		return errors.New(name + " " + strings.Join(args, " ") + ": " + err.Error() + ": " + strings.TrimSpace(string(out)))
	}
	return nil
}
