package clickhouse_test

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/testenv"
	"diehard/shared/settings"
)

func TestHosts(t *testing.T) {
	t.Parallel()
	for hosts, want := range map[string][]string{
		"a":                     {"a:9000"},
		"a,b:9440, c":           {"a:9000", "b:9440", "c:9000"},
		"::1,[::2]:9440,[::3]":  {"[::1]:9000", "[::2]:9440", "[::3]:9000"},
		"10.0.0.1:1,10.0.0.2:2": {"10.0.0.1:1", "10.0.0.2:2"},
	} {
		cfg, err := settings.ParseFrom[clickhouse.Config]("test", map[string]string{"CLICKHOUSE_HOST": hosts})
		require.NoError(t, err, hosts)
		assert.Equal(t, want, cfg.Addresses())
		options, err := clickhouse.Options(cfg)
		require.NoError(t, err)
		assert.Equal(t, want, options.Addr)
	}
	for _, hosts := range []string{",", "a,", "a,,b", "a b", "a:0", "a:70000", "a:x", ":9000", "http://a"} {
		_, err := settings.ParseFrom[clickhouse.Config]("test", map[string]string{"CLICKHOUSE_HOST": hosts})
		assert.ErrorContains(t, err, "CLICKHOUSE_HOST", hosts)
	}
}

// A host that refuses, and one that accepts and says nothing, are passed over; a
// later connection starts with the host that answered.
func TestHostsThatAreDownArePassedOver(t *testing.T) {
	t.Parallel()
	cfg := testenv.New(t).ClickHouseConfig
	silent, asked := listenSilently(t)
	cfg.Host = "127.0.0.1:1," + silent + "," + cfg.Host
	conn, err := clickhouse.Open(t.Context(), cfg)
	require.NoError(t, err)
	defer conn.Close()
	require.EqualValues(t, 1, asked.Load())

	// Two at once need a second connection.
	rows, err := conn.Query(t.Context(), "SELECT number FROM numbers(100000)")
	require.NoError(t, err)
	require.True(t, rows.Next())
	var one uint8
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT 1").Scan(&one))
	require.NoError(t, rows.Close())
	assert.EqualValues(t, 1, asked.Load(), "the silent host was asked again")
}

// Each of several hosts has less than a second. Only when one of them was silent and none answers do
// they have the whole time.
func TestOneOfSeveralHostsIsNotWaitedForLong(t *testing.T) {
	t.Parallel()
	options, err := clickhouse.Options(clickhouse.Config{Host: "a,b", Port: 9000})
	require.NoError(t, err)
	var limits []time.Duration
	_, err = options.DialStrategy(t.Context(), 1, options, func(ctx context.Context, _ string, o *driver.Options) (driver.DialResult, error) {
		limits = append(limits, o.DialTimeout)
		end, _ := ctx.Deadline()
		assert.WithinRange(t, end, time.Now().Add(-time.Minute), time.Now().Add(o.DialTimeout))
		return driver.DialResult{}, os.ErrDeadlineExceeded
	})
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Len(t, limits, 4)
	assert.Equal(t, limits[0], limits[1])
	assert.Less(t, limits[0], time.Second)
	assert.Equal(t, []time.Duration{options.DialTimeout, options.DialTimeout}, limits[2:])
}

// The host that answered last is tried first, until it is down.
func TestTheHostThatAnsweredIsPreferredUntilItIsDown(t *testing.T) {
	t.Parallel()
	options, err := clickhouse.Options(clickhouse.Config{Host: "a,b,c", Port: 1})
	require.NoError(t, err)
	down := map[string]bool{}
	connect := func() (asked string) {
		_, err := options.DialStrategy(t.Context(), 1, options, func(_ context.Context, address string, _ *driver.Options) (driver.DialResult, error) {
			asked += strings.TrimSuffix(address, ":1")
			if down[address] {
				return driver.DialResult{}, syscall.ECONNREFUSED
			}
			return driver.DialResult{}, nil
		})
		require.NoError(t, err)
		return asked
	}
	assert.Equal(t, "a", connect())
	down["a:1"] = true
	assert.Equal(t, "ab", connect())
	down["a:1"] = false
	assert.Equal(t, "b", connect(), "it goes on with the one that answers")
	down["b:1"], down["c:1"] = true, true
	assert.Equal(t, "bca", connect(), "behind the last comes the first")
	assert.Equal(t, "a", connect())
}

func TestEveryHostThatIsDownIsNamed(t *testing.T) {
	t.Parallel()
	cfg := testenv.New(t).ClickHouseConfig
	cfg.Host = "127.0.0.1:1,127.0.0.1:2"
	_, err := clickhouse.Open(t.Context(), cfg)
	require.ErrorContains(t, err, "127.0.0.1:1")
	require.ErrorContains(t, err, "127.0.0.1:2")
	require.ErrorContains(t, err, "is the server running?")
}

// listenSilently accepts connections, counts them and never answers.
func listenSilently(t *testing.T) (address string, accepted *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	accepted = new(atomic.Int64)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			defer conn.Close() // open until the test ends
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		serving.Wait()
	})
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)), accepted
}
