package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// network is a Toxiproxy between the streamer and one of its databases.
type network struct {
	t     testing.TB
	proxy *toxiproxy.Proxy
}

func newNetwork(t testing.TB, upstream string) *network {
	t.Helper()
	log := zerolog.Nop()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), log)
	n := &network{t: t, proxy: toxiproxy.NewProxy(server, t.Name(), net.JoinHostPort(ownAddress(), "0"), upstream)}
	require.NoError(t, n.proxy.Start())
	t.Cleanup(n.proxy.Stop)
	return n
}

// ownAddress returns a loopback address of this network's own where the system
// has more than one: a port on it is still free when the proxy listens again.
func ownAddress() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}

// toPostgres puts a network between the streamer and PostgreSQL; the test's own
// connections stay direct.
func toPostgres(t testing.TB, env *testenv.Env) (*network, func(*setup)) {
	t.Helper()
	address, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	n := newNetwork(t, address.Host)
	address.Host = n.proxy.Listen
	return n, func(c *setup) { c.PostgresURL = address.String() }
}

// toClickHouse does the same for ClickHouse.
func toClickHouse(t testing.TB, env *testenv.Env) (*network, func(*setup)) {
	t.Helper()
	n := newNetwork(t, env.ClickHouseConfig.Address())
	host, port, err := net.SplitHostPort(n.proxy.Listen)
	require.NoError(t, err)
	number, err := strconv.ParseUint(port, 10, 16)
	require.NoError(t, err)
	return n, func(c *setup) { c.ClickHouse.Host, c.ClickHouse.Port = host, uint16(number) }
}

// cut resets every connection and refuses new ones, until restore.
func (n *network) cut() { n.proxy.Stop() }

func (n *network) restore() {
	n.t.Helper()
	n.listens(n.proxy.Start)
}

// listens waits until the port is free again: a process that is being started beside
// the test holds a copy of the closed listener until it runs its own program.
func (n *network) listens(start func() error) {
	n.t.Helper()
	var err error
	await.True(n.t, func() bool { err = start(); return !errors.Is(err, syscall.EADDRINUSE) }, "the port of the proxy is taken")
	require.NoError(n.t, err)
}

// leadTo changes which server the address means.
func (n *network) leadTo(upstream string) {
	n.t.Helper()
	n.listens(func() error {
		return n.proxy.Update(&toxiproxy.Proxy{Listen: n.proxy.Listen, Upstream: upstream, Enabled: true})
	})
}

// silence keeps connections open and drops what is sent on them, in the streams
// given: "upstream" is from the streamer to the database.
func (n *network) silence(streams ...string) {
	for _, stream := range streams {
		n.add("silence_"+stream, "timeout", stream, `{"timeout": 0}`)
	}
}

// delay holds everything back for some milliseconds, in both directions.
func (n *network) delay(milliseconds int) {
	for _, stream := range []string{"upstream", "downstream"} {
		n.add("delay_"+stream, "latency", stream, fmt.Sprintf(`{"latency": %d}`, milliseconds))
	}
}

// cutAfter closes each connection once so many bytes have gone upstream.
func (n *network) cutAfter(bytes int) {
	n.add("limit", "limit_data", "upstream", fmt.Sprintf(`{"bytes": %d}`, bytes))
}

func (n *network) add(name, kind, stream, attributes string) {
	n.t.Helper()
	_, err := n.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
		`{"name": %q, "type": %q, "stream": %q, "toxicity": 1, "attributes": %s}`, name, kind, stream, attributes)))
	require.NoError(n.t, err)
}

// heal removes everything that was added.
func (n *network) heal() { n.proxy.Toxics.ResetToxics(n.t.Context()) }
