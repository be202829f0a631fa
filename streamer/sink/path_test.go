package sink

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/link"
	"diehard/shared/dev/testenv"
)

// An insert waits for ClickHouse twice: until it is registered, and until its block is written.
// The proof in between waits for PostgreSQL.
func TestAnInsertIsTwoRoundTrips(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	l := link.New(t, link.Options{RTT: 20 * time.Millisecond})
	listener, err := l.Listen(link.Far)
	require.NoError(t, err)
	testenv.Relay(t, listener, f.ClickHouseConfig.Address())
	options, err := clickhouse.Options(f.ClickHouseConfig)
	require.NoError(t, err)
	dial := l.Dialer(link.Near, new(net.Dialer).DialContext)
	options.DialStrategy, options.DialContext = nil, func(ctx context.Context, _ string) (net.Conn, error) {
		return dial(ctx, "tcp", listener.Addr().String())
	}
	conn, err := clickhouse.OpenOptions(options)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.Ping(t.Context()))
	s := New(conn, f.tables, f.source, OnTimeline(timeline))
	for n := range 3 {
		a, before, proved := f.attempt(), l.RoundTrips(), int64(0)
		a.Verify = func(context.Context) error {
			proved = l.RoundTrips()
			return nil
		}
		require.NoError(t, s.Insert(t.Context(), sample(1, 100*n+1), 0, 100*n+1, a))
		assert.Equal(t, before+1, proved, "registered")
		assert.Equal(t, before+2, l.RoundTrips(), "written")
	}
}
