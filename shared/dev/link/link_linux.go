package link

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Open opens a link.
//
// Errors: ErrUnavailable with the reason, where namespaces or TUN devices cannot be made.
func Open(o Options) (*Link, error) {
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, fmt.Errorf("%w: the program ip is missing (Debian's iproute2 has it)", ErrUnavailable)
	}
	l := &Link{addresses: addressesOf(0)}
	if o.Here { // two processes must not have the same
		l.addresses = addressesOf(byte(os.Getpid() % 126)) //nolint:gosec // less than 126
	}
	for end := range l.spaces {
		if err := l.makeEnd(End(end), o.Here && End(end) == Near); err != nil {
			l.Close()
			return nil, err
		}
	}
	if err := l.Set(o); err != nil {
		l.Close()
		return nil, err
	}
	for end := range l.tunnels {
		packets := make(chan packet, queueLength)
		l.pumps.Go(func() { l.receive(End(end), packets) })
		l.pumps.Go(func() { l.deliver(End(1-end), packets) })
	}
	return l, nil
}

func (l *Link) makeEnd(end End, here bool) error {
	if !here {
		space, err := newSpace()
		if err != nil {
			return fmt.Errorf("%w: make a network namespace (root may): %w", ErrUnavailable, err)
		}
		l.spaces[end] = space
	}
	return l.Within(end, func() (err error) {
		if l.tunnels[end], l.devices[end], err = openTunnel(); err != nil {
			return fmt.Errorf("%w: open /dev/net/tun: %w", ErrUnavailable, err)
		}
		for _, args := range [][]string{
			{"link", "set", "dev", "lo", "up"},
			{"link", "set", "dev", l.devices[end], "txqueuelen", strconv.Itoa(queueLength), "up"},
			{"address", "add", l.addresses[end].String(), "peer", l.addresses[1-end].String(), "dev", l.devices[end]},
		} {
			if err := run("ip", args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// Set changes the round trip of what is sent from now on, and the MTU and the offload of connections
// that are made from now on. Here stays as it was.
func (l *Link) Set(o Options) error {
	l.delay.Store(int64(o.RTT / 2))
	for end := range l.devices {
		if err := setOffload(l.tunnels[end], o.Offload); err != nil {
			return err
		}
		err := l.Within(End(end), func() error {
			return run("ip", "link", "set", "dev", l.devices[end], "mtu", strconv.Itoa(cmp.Or(o.MTU, 1500)))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// setOffload makes a device take packets without checksums, of more than one segment.
// Source: Linux, tun.c, set_offload.
func setOffload(tunnel *os.File, offload bool) error {
	features := 0
	if offload {
		features = unix.TUN_F_CSUM | unix.TUN_F_TSO4
	}
	raw, err := tunnel.SyscallConn() // Fd would make it block
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, features) })
	return cmp.Or(err, set)
}

// Within runs f in the namespace of an end. What f opens or starts stays there.
func (l *Link) Within(end End, f func() error) error {
	if l.spaces[end] == nil {
		return f()
	}
	return within(func() error { return unix.Setns(int(l.spaces[end].Fd()), unix.CLONE_NEWNET) }, f)
}

// newSpace makes a namespace that lives as long as the file is open or a process is in it.
func newSpace() (space *os.File, err error) {
	err = within(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		space, err = os.Open(ownSpace)
		return err
	})
	return space, err
}

const ownSpace = "/proc/thread-self/ns/net"

// within runs f on a thread that enter has moved to another namespace. A thread that cannot
// be moved back ends with its goroutine.
func within(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(ownSpace)
		if err == nil {
			err = enter()
		}
		if err != nil {
			done <- err
			return
		}
		result := f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		_ = home.Close() // only read
		done <- result
	}()
	return <-done
}

// openTunnel also returns the name of the device; the kernel chooses its number.
func openTunnel() (tunnel *os.File, device string, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", err
	}
	request, err := unix.NewIfreq("diehard%d")
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, "", err
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), request.Name(), nil
}

// queueLength is how many packets are on their way at most; others are lost.
const queueLength = 16 << 10

// maxPacket is what an IP packet has at most, with the header in front of it.
const maxPacket = offloadHeader + 64<<10

type packet struct {
	content []byte // with the header
	due     time.Time
	trip    int64 // see RoundTrips
}

// receive takes the packets that an end sends, until its tunnel is closed.
func (l *Link) receive(from End, packets chan<- packet) {
	defer close(packets)
	buffer := make([]byte, maxPacket)
	for {
		n, err := l.tunnels[from].Read(buffer)
		if err != nil {
			return
		}
		l.segments[from].Add(segmentsOf(buffer[:n]))
		select {
		case packets <- packet{bytes.Clone(buffer[:n]), time.Now().Add(time.Duration(l.delay.Load())), l.tripOf(from, buffer[:n])}:
		default:
		}
	}
}

// deliver gives the other end each packet when it is due. The timers of the runtime are
// too coarse for a tenth of a millisecond.
func (l *Link) deliver(to End, packets <-chan packet) {
	runtime.LockOSThread() // not unlocked: the thread ends with its precise timer
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	for p := range packets {
		if wait := time.Until(p.due); wait > 0 {
			timeout := unix.NsecToTimespec(wait.Nanoseconds())
			_ = unix.Nanosleep(&timeout, nil)
		}
		l.arrived(to, p.trip)
		_, _ = l.tunnels[to].Write(p.content) // a link may lose packets
	}
}
