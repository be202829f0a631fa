package clickhouse_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	driver "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/testenv"
)

const insertBlocks = "INSERT INTO blocks (n, s, l)"

// newBlocks makes a table for blocks, and opens it with change.
func newBlocks(t *testing.T, change func(*clickhouse.Config)) clickhouse.Conn {
	t.Helper()
	env := testenv.New(t)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "CREATE TABLE blocks (n UInt64, s String, l LowCardinality(String)) ENGINE = MergeTree ORDER BY n SETTINGS max_parts_to_merge_at_once = 1"))
	cfg := env.ClickHouseConfig
	change(&cfg)
	conn, err := clickhouse.Open(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// openThrough opens the server of cfg with the connections that wrap makes.
func openThrough(t *testing.T, cfg clickhouse.Config, wrap func(net.Conn) net.Conn) clickhouse.Conn {
	t.Helper()
	options, err := clickhouse.Options(cfg)
	require.NoError(t, err)
	options.DialStrategy, options.DialContext = nil, func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return wrap(conn), nil
	}
	conn, err := clickhouse.OpenOptions(options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func prepare(t *testing.T, conn clickhouse.Conn) clickhouse.Insert {
	t.Helper()
	i, err := conn.PrepareInsert(t.Context(), uuid.NewString(), insertBlocks, nil)
	require.NoError(t, err)
	return i
}

// blockOf holds rows of which each has its own number and a string of size bytes.
func blockOf(first, rows, size int) []proto.InputColumn {
	n, s, l := new(proto.ColUInt64), new(proto.ColStr), proto.NewLowCardinality(new(proto.ColStr))
	random := rand.New(rand.NewPCG(uint64(first), 1))
	for i := range rows {
		n.Append(uint64(first + i))
		b := make([]byte, size) // which LZ4 cannot make smaller
		for j := range b {
			b[j] = byte(random.Uint32())
		}
		s.AppendBytes(b)
		l.Append(fmt.Sprint("kind", i%3))
	}
	return []proto.InputColumn{{Name: "n", Data: n}, {Name: "s", Data: s}, {Name: "l", Data: l}}
}

// holds compares what the table has of rows from first on.
func holds(t *testing.T, conn clickhouse.Conn, first, rows, size int) {
	t.Helper()
	want := blockOf(first, rows, size)
	got, err := conn.Query(t.Context(), "SELECT n, s, l FROM blocks WHERE n >= {first:UInt64} AND n < {end:UInt64} ORDER BY n",
		driver.Named("first", first), driver.Named("end", first+rows))
	require.NoError(t, err)
	defer got.Close()
	i := 0
	for ; got.Next(); i++ {
		var n uint64
		var s, l string
		require.NoError(t, got.Scan(&n, &s, &l))
		require.EqualValues(t, first+i, n)
		if want[1].Data.(*proto.ColStr).Row(i) != s { // too long to be printed
			require.Fail(t, "another string", "row %d of %d", i, rows)
		}
		require.Equal(t, fmt.Sprint("kind", i%3), l)
	}
	require.NoError(t, got.Err())
	require.Equal(t, rows, i)
}

// runs reports whether ClickHouse runs a query.
func runs(t *testing.T, conn clickhouse.Conn, id string) bool {
	t.Helper()
	var n uint64
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM system.processes WHERE query_id = {id:String}", driver.Named("id", id)).Scan(&n))
	return n > 0
}

func count(t *testing.T, conn clickhouse.Conn) (n uint64) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM blocks").Scan(&n))
	return n
}

func TestABlockArrivesAsItIs(t *testing.T) {
	t.Parallel()
	authority := testenv.NewAuthority(t)
	for name, change := range map[string]func(*clickhouse.Config){
		"plain": func(c *clickhouse.Config) { c.Compression = "none" },
		"LZ4":   func(c *clickhouse.Config) { c.Compression = "lz4" },
		"TLS": func(c *clickhouse.Config) {
			c.Port = testenv.TerminateTLS(t, c.Address(), &tls.Config{
				Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)).Certificate},
			})
			c.Host, c.Secure, c.CAFile = "127.0.0.1", true, authority.File
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := newBlocks(t, change)
			first := 0
			for _, b := range []struct{ rows, size int }{
				{1, 0}, {1, 1}, {3, 200}, {1, 64 << 10}, {1, 1<<20 - 8}, {1, 1 << 20}, {1, 3 << 20}, {30_000, 100}, {5, 0},
			} {
				require.NoError(t, prepare(t, conn).SendBlock(blockOf(first, b.rows, b.size)))
				holds(t, conn, first, b.rows, b.size)
				first += b.rows
			}
			var inserts uint64
			require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM system.parts WHERE database = currentDatabase() AND table = 'blocks' AND level = 0").Scan(&inserts))
			assert.EqualValues(t, 9, inserts, "a block is one part")
			assert.EqualValues(t, first, count(t, conn))
		})
	}
}

// Inserts that are under way at once are on connections of their own: each gets its own block.
func TestBlocksOfSeveralInsertsDoNotMix(t *testing.T) {
	t.Parallel()
	conn := newBlocks(t, func(*clickhouse.Config) {})
	first, second, third := prepare(t, conn), prepare(t, conn), prepare(t, conn)
	require.NoError(t, second.SendBlock(blockOf(1000, 5, 5)))
	assert.EqualValues(t, 5, count(t, conn), "the others wait")
	require.NoError(t, third.Abort())
	require.NoError(t, first.SendBlock(blockOf(2000, 7, 5)))
	holds(t, conn, 1000, 5, 5)
	holds(t, conn, 2000, 7, 5)
	assert.EqualValues(t, 12, count(t, conn), "nothing of what was aborted")

	var all errgroup.Group
	for g := range 3 {
		all.Go(func() error {
			for k := range 20 {
				i, err := conn.PrepareInsert(t.Context(), uuid.NewString(), insertBlocks, nil)
				if err != nil {
					return err
				}
				if err := i.SendBlock(blockOf(10_000*(g+1)+10*k, 10, 300)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, all.Wait())
	for g := range 3 {
		for k := range 20 {
			holds(t, conn, 10_000*(g+1)+10*k, 10, 300)
		}
	}
}

// An insert may also append its rows, and its settings and id are those of the query.
func TestAnInsertMayAppendItsRows(t *testing.T) {
	t.Parallel()
	conn := newBlocks(t, func(*clickhouse.Config) {})
	i := prepare(t, conn)
	require.NoError(t, i.Append(uint64(1), "s", "l"))
	require.NoError(t, i.Send())
	assert.EqualValues(t, 1, count(t, conn))

	_, err := conn.PrepareInsert(t.Context(), uuid.NewString(), insertBlocks, driver.Settings{"no_such_setting": 1})
	require.ErrorContains(t, err, "no_such_setting")
	id := uuid.NewString()
	i, err = conn.PrepareInsert(t.Context(), id, insertBlocks, nil)
	require.NoError(t, err)
	assert.True(t, runs(t, conn, id))
	require.NoError(t, i.SendBlock(blockOf(10, 1, 1)))
}

// Columns that do not fit each other are not sent, and the connection ends: ClickHouse waits for no block.
func TestABlockWhoseColumnsDifferIsNotSent(t *testing.T) {
	t.Parallel()
	conn, through, last := newStuckBlocks(t, func(*clickhouse.Config) {})
	wrong := blockOf(1, 3, 3)
	wrong[1] = blockOf(1, 2, 3)[1]
	require.ErrorContains(t, prepare(t, through).SendBlock(wrong), `"s" has 2 rows, expected 3`)
	select {
	case <-last().closed:
	default:
		require.Fail(t, "the connection is open")
	}
	wrong = blockOf(1, 3, 3)
	wrong[0].Data = new(proto.ColStr)
	for range 3 {
		wrong[0].Data.(*proto.ColStr).Append("no number")
	}
	exception, ok := errors.AsType[*driver.Exception](prepare(t, conn).SendBlock(wrong))
	require.True(t, ok, "ClickHouse says what is wrong")
	assert.NotZero(t, exception.Code)
	assert.Zero(t, count(t, conn))
	require.NoError(t, prepare(t, conn).SendBlock(blockOf(1, 3, 3)))
	holds(t, conn, 1, 3, 3)
}

// An insert is ended by one block, and what is none is refused: nothing may seem to be inserted.
func TestAnInsertTakesOneBlock(t *testing.T) {
	t.Parallel()
	conn := newBlocks(t, func(*clickhouse.Config) {})
	uses := map[string]func(clickhouse.Insert, int) error{
		"no columns": func(i clickhouse.Insert, _ int) error { return i.SendBlock(nil) },
		"no rows":    func(i clickhouse.Insert, _ int) error { return i.SendBlock(blockOf(1, 0, 0)) },
		"after rows": func(i clickhouse.Insert, n int) error {
			return errors.Join(i.Append(uint64(n), "s", "l"), i.SendBlock(blockOf(n+1, 1, 1)))
		},
		"twice": func(i clickhouse.Insert, n int) error {
			require.NoError(t, i.SendBlock(blockOf(n, 1, 1)))
			return i.SendBlock(blockOf(n+1, 1, 1))
		},
		"after Abort": func(i clickhouse.Insert, n int) error {
			require.NoError(t, i.Abort())
			return i.SendBlock(blockOf(n, 1, 1))
		},
	}
	for round := range 2 { // no connection is lost
		for name, use := range uses {
			before := count(t, conn)
			require.ErrorContains(t, use(prepare(t, conn), 1000*round+100*len(name)), "takes one block", name)
			if name == "twice" {
				before++
			}
			assert.Equal(t, before, count(t, conn), name)
		}
	}
	require.NoError(t, prepare(t, conn).SendBlock(blockOf(1, 1, 1)))
}

// A server that reads no more does not hold an insert beyond its time.
func TestABlockThatGetsStuckEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for _, compression := range []string{"none", "lz4"} {
		t.Run(compression, func(t *testing.T) {
			t.Parallel()
			conn, through, last := newStuckBlocks(t, func(c *clickhouse.Config) { c.Compression = compression })
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			i, err := through.PrepareInsert(ctx, uuid.NewString(), insertBlocks, nil)
			require.NoError(t, err)
			last().after.Store(true)
			require.ErrorIs(t, i.SendBlock(blockOf(1, 1, 4<<20)), context.DeadlineExceeded)
			require.NoError(t, prepare(t, through).SendBlock(blockOf(1, 1, 1)), "on another connection")
			assert.EqualValues(t, 1, count(t, conn))
		})
	}
}

// stuck is a connection whose other end reads no more after something.
type stuck struct {
	net.Conn
	after  atomic.Bool
	once   sync.Once
	closed chan struct{}
}

// newStuckBlocks is newBlocks with a second way to its server, and the connection that was made last on it.
func newStuckBlocks(t *testing.T, change func(*clickhouse.Config)) (conn, through clickhouse.Conn, last func() *stuck) {
	t.Helper()
	var cfg clickhouse.Config
	conn = newBlocks(t, func(c *clickhouse.Config) {
		change(c)
		cfg = *c
	})
	var made *stuck
	through = openThrough(t, cfg, func(c net.Conn) net.Conn {
		made = &stuck{Conn: c, closed: make(chan struct{})}
		return made
	})
	return conn, through, func() *stuck { return made }
}

func (s *stuck) Write(p []byte) (int, error) {
	if s.after.Load() {
		<-s.closed
		return 0, net.ErrClosed
	}
	return s.Conn.Write(p)
}

func (s *stuck) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

// A connection that ended while it was not used is noticed before an insert is sent on it.
func TestAConnectionThatEndedIsNotUsedAgain(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	authority := testenv.NewAuthority(t)
	port := testenv.TerminateTLS(t, env.ClickHouseConfig.Address(), &tls.Config{
		Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)).Certificate},
	})
	for name, address := range map[string]string{"plain": env.ClickHouseConfig.Address(), "TLS": net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := env.ClickHouseConfig
			cfg.Host = address
			var dialed []*net.TCPConn
			conn := openThrough(t, cfg, func(c net.Conn) net.Conn {
				dialed = append(dialed, c.(*net.TCPConn))
				if name == "plain" {
					return c
				}
				return tls.Client(c, &tls.Config{RootCAs: authority.Pool(), ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
			})
			for range 2 {
				require.NoError(t, conn.Ping(t.Context()))
			}
			require.Len(t, dialed, 1)
			require.NoError(t, dialed[0].CloseRead()) // as if the server had ended it
			require.NoError(t, conn.Ping(t.Context()))
			assert.Len(t, dialed, 2)
		})
	}
}
