package crash_test

import (
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
)

// network lies between the streamers and the servers. It is not Toxiproxy, whose
// toxics cannot be taken off a connection that dies at that moment, and which
// cannot hold data back to deliver it late, after its sender is long gone.
type network struct{ postgres, clickhouse *way }

// way leads to one service, through one proxy for each of its listeners.
type way struct {
	busy    sync.Mutex // held by the fault that disturbs
	proxies group
}

// group are proxies that are disturbed together.
type group []*proxy

// proxy leads to one listener.
type proxy struct {
	listener net.Listener
	server   string
	links    sync.WaitGroup

	mu      sync.Mutex
	open    map[*link]bool
	laid    int // links so far
	refuses bool
	holds   [2]hold // by direction
	delay   time.Duration
}

// hold keeps data back until it ends; the zero hold does not.
type hold struct {
	ended chan struct{}
	older int // affects links of lower numbers only
}

// everyLink is for holds that affect the links to come as well.
const everyLink = math.MaxInt

// direction of data on a proxy.
type direction int

const (
	toServer direction = iota
	toStreamer
)

// link is one connection through a proxy.
type link struct {
	number int
	sides  [2]*net.TCPConn // where data of a direction goes to
	gone   chan struct{}
	once   sync.Once
}

func newNetwork(t *testing.T, postgresPort int, clickhousePorts []int) *network {
	t.Helper()
	n := &network{postgres: &way{proxies: group{lay(t, postgresPort)}}, clickhouse: &way{}}
	for _, port := range clickhousePorts {
		n.clickhouse.proxies = append(n.clickhouse.proxies, lay(t, port))
	}
	return n
}

// some are one of the proxies or, every third time, all.
func (w *way) some(r *rand.Rand) group {
	if n := r.IntN(len(w.proxies) * 3); n < len(w.proxies)*2 {
		return w.proxies[n/2 : n/2+1]
	}
	return w.proxies
}

func lay(t *testing.T, port int) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(embedded.Host, "0"))
	require.NoError(t, err)
	c := &proxy{listener: listener, server: net.JoinHostPort(embedded.Host, strconv.Itoa(port)), open: map[*link]bool{}}
	c.links.Go(c.serve)
	return c
}

// heal waits for the faults that disturb: each takes away what it brought.
func (n *network) heal() {
	for _, w := range []*way{n.postgres, n.clickhouse} {
		w.busy.Lock()
		w.busy.Unlock() //nolint:staticcheck // an empty section: having had the lock is all
	}
}

func (n *network) close() {
	for _, c := range slices.Concat(n.postgres.proxies, n.clickhouse.proxies) {
		c.listener.Close()
		c.cut()
		c.links.Wait()
	}
}

// addresses are where the streamers find the service.
func (w *way) addresses() []string {
	var all []string
	for _, c := range w.proxies {
		all = append(all, c.listener.Addr().String())
	}
	return all
}

func (c *proxy) serve() {
	for {
		conn, err := c.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.links.Go(func() { c.connect(conn.(*net.TCPConn)) })
		}
	}
}

func (c *proxy) connect(streamer *net.TCPConn) {
	defer streamer.Close()
	server, err := net.Dial("tcp", c.server)
	if err != nil {
		return
	}
	l := &link{sides: [2]*net.TCPConn{server.(*net.TCPConn), streamer}, gone: make(chan struct{})}
	defer l.drop()
	c.mu.Lock()
	refused := c.refuses
	c.open[l], l.number = true, c.laid
	c.laid++
	c.mu.Unlock()
	if !refused {
		var both sync.WaitGroup
		both.Go(func() { c.pump(l, toServer) })
		both.Go(func() { c.pump(l, toStreamer) })
		both.Wait()
	}
	c.mu.Lock()
	delete(c.open, l)
	c.mu.Unlock()
}

// pump moves data of one direction until its source ends.
func (c *proxy) pump(l *link, d direction) {
	from, to := l.sides[1-d], l.sides[d]
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if !c.pass(l, d) {
			return
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				l.drop()
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = to.CloseWrite() // the other direction may go on
			return
		case err != nil:
			l.drop()
			return
		}
	}
}

// pass waits until data may pass; it reports whether the link is still there.
func (c *proxy) pass(l *link, d direction) bool {
	for {
		c.mu.Lock()
		h, delay := c.holds[d], c.delay
		c.mu.Unlock()
		held := h.ended != nil && l.number < h.older
		var later <-chan time.Time
		switch {
		case !held && delay == 0:
			return true
		case !held:
			later = time.After(delay)
			h.ended = nil
		}
		select {
		case <-l.gone:
			return false
		case <-later:
			return true
		case <-h.ended:
		}
	}
}

// drop ends a link at once: with a reset, and without what is still on its way.
func (l *link) drop() {
	l.once.Do(func() {
		close(l.gone)
		for _, side := range l.sides {
			_ = side.SetLinger(0)
			_ = side.Close()
		}
	})
}
