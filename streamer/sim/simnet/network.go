// Package simnet is a network in memory for the simulation: connections with
// buffers, delays drawn from a seed, cuts, and hosts that freeze or die. Everything
// waits on conditions and timers, so that it works under virtual time.
package simnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Delay draws how long one write is under way.
type Delay func(r *rand.Rand) time.Duration

// Network connects hosts. Its lock guards everything below it.
type Network struct {
	mu        sync.Mutex
	seed      uint64
	opened    uint64
	delay     Delay
	conns     map[*Conn]struct{} // both ends of each
	listeners map[string]listener
	hosts     map[string]*Host
}

type listener struct {
	host   *Host
	accept func(net.Conn)
}

// New returns a network whose delays follow from seed.
func New(seed uint64, delay Delay) *Network {
	return &Network{seed: seed, delay: delay, conns: make(map[*Conn]struct{}), listeners: make(map[string]listener), hosts: make(map[string]*Host)}
}

// SetDelay changes the delays of what is written from now on.
func (n *Network) SetDelay(d Delay) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = d
}

// Listen makes address lead to host: accept is called for each connection, in a goroutine.
func (n *Network) Listen(address string, host *Host, accept func(net.Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[address] = listener{host, accept}
}

// Host is a machine or a process. A frozen one neither sends nor reads until it
// thaws; what the network had taken before still arrives. A dead one never comes back.
type Host struct {
	Name   string
	net    *Network
	frozen bool
	dead   bool
	thawed chan struct{} // closed when it is not frozen
}

// Host returns a new host.
func (n *Network) Host(name string) *Host {
	h := &Host{Name: name, net: n, thawed: make(chan struct{})}
	close(h.thawed)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[name] = h
	return h
}

// Named returns the host of that name.
func (n *Network) Named(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[name]
}

// Freeze stops the host as SIGSTOP does.
func (h *Host) Freeze() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if !h.frozen && !h.dead {
		h.frozen, h.thawed = true, make(chan struct{})
	}
}

// Thaw lets a frozen host go on.
func (h *Host) Thaw() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.thaw()
}

func (h *Host) thaw() {
	if !h.frozen {
		return
	}
	h.frozen = false
	close(h.thawed)
	for c := range h.net.conns {
		if c.host == h {
			c.peer.release(h.net.delay)
			c.cond.Broadcast()
		}
	}
}

// Kill ends the host. What it had sent still arrives, or is lost with it.
func (h *Host) Kill(lost bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.dead = true
	for c := range h.net.conns {
		if c.host == h {
			c.peer.dropHeld() // what a frozen process had not written yet
			if lost {
				c.peer.in = nil
			}
			c.shut(!lost)
		}
	}
	h.thaw()
}

// Frozen reports whether the host is frozen.
func (h *Host) Frozen() bool {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.frozen
}

// Dead reports whether Kill was called.
func (h *Host) Dead() bool {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.dead
}

// Cut breaks all connections of the host. What is under way arrives, or is lost.
func (h *Host) Cut(lost bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for c := range h.net.conns {
		if c.host == h {
			c.cut(lost)
		}
	}
}

// Stall holds back everything that the host sends from now on, and what is sent to
// it, until then: a network that swallows packets which TCP sends again.
func (h *Host) Stall(until time.Time) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for c := range h.net.conns {
		if c.host == h {
			c.holdUntil, c.peer.holdUntil = until, until
		}
	}
}

// Close ends every connection, and lets no new one begin.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.listeners)
	for c := range n.conns {
		c.shut(true)
	}
}

// Dial connects host to address.
func (h *Host) Dial(ctx context.Context, address string) (net.Conn, error) {
	n := h.net
	n.mu.Lock()
	n.opened++
	number, thawed, delay := n.opened, h.thawed, n.delay
	n.mu.Unlock()
	r := n.random(number)
	select {
	case <-thawed:
	case <-ctx.Done():
		return nil, dialError(address, ctx.Err())
	}
	wait := time.NewTimer(delay(r))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return nil, dialError(address, ctx.Err())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l, ok := n.listeners[address]
	if !ok || l.host.dead || h.dead {
		return nil, dialError(address, os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	near := newConn(n, h, r, address)
	far := newConn(n, l.host, n.random(number|1<<63), h.Name)
	near.peer, far.peer = far, near
	n.conns[near], n.conns[far] = struct{}{}, struct{}{}
	go l.accept(far)
	return near, nil
}

func dialError(address string, err error) error {
	return &net.OpError{Op: "dial", Net: "sim", Err: fmt.Errorf("%s: %w", address, err)}
}

// random repeats itself for a seed, which nothing secret depends on.
func (n *Network) random(stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(n.seed, stream)) //nolint:gosec // see above
}
