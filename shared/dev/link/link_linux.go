package link

import (
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
	if o.MTU == 0 {
		o.MTU = 1500
	}
	l := &Link{}
	for end := range l.spaces {
		if err := l.makeEnd(End(end), o.MTU); err != nil {
			l.Close()
			return nil, err
		}
	}
	for end := range l.tunnels {
		from, to := l.tunnels[end], l.tunnels[1-end]
		packets := make(chan packet, queueLength)
		l.pumps.Go(func() { receive(from, packets, o.MTU, o.RTT/2) })
		l.pumps.Go(func() { deliver(to, packets) })
	}
	return l, nil
}

func (l *Link) makeEnd(end End, mtu int) error {
	space, err := newSpace()
	if err != nil {
		return fmt.Errorf("%w: make a network namespace (root may): %w", ErrUnavailable, err)
	}
	l.spaces[end] = space
	return l.Within(end, func() error {
		tunnel, err := openTunnel()
		if err != nil {
			return fmt.Errorf("%w: open /dev/net/tun: %w", ErrUnavailable, err)
		}
		l.tunnels[end] = tunnel
		for _, args := range [][]string{
			{"link", "set", "dev", "lo", "up"},
			{"link", "set", "dev", device, "mtu", strconv.Itoa(mtu), "txqueuelen", strconv.Itoa(queueLength), "up"},
			{"address", "add", addresses[end].String(), "peer", addresses[1-end].String(), "dev", device},
		} {
			if err := run("ip", args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// Within runs f in the namespace of an end. What f opens or starts stays there.
func (l *Link) Within(end End, f func() error) error {
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

// device is the name of the TUN device, the same in each namespace.
const device = "tun0"

func openTunnel() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(device)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// queueLength is how many packets are on their way at most; others are lost.
const queueLength = 16 << 10

type packet struct {
	content []byte
	due     time.Time
}

// receive takes the packets that an end sends, until its tunnel is closed.
func receive(from *os.File, packets chan<- packet, mtu int, delay time.Duration) {
	defer close(packets)
	for {
		content := make([]byte, mtu)
		n, err := from.Read(content)
		if err != nil {
			return
		}
		select {
		case packets <- packet{content[:n], time.Now().Add(delay)}:
		default:
		}
	}
}

// deliver gives the other end each packet when it is due. The timers of the runtime are
// too coarse for a tenth of a millisecond.
func deliver(to *os.File, packets <-chan packet) {
	runtime.LockOSThread() // not unlocked: the thread ends with its precise timer
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	for p := range packets {
		if wait := time.Until(p.due); wait > 0 {
			timeout := unix.NsecToTimespec(wait.Nanoseconds())
			_ = unix.Nanosleep(&timeout, nil)
		}
		_, _ = to.Write(p.content) // a link may lose packets
	}
}
