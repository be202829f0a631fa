package sim_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/streamer/batch"
	"diehard/streamer/pipeline"
	"diehard/streamer/replication"
	"diehard/streamer/sim/simch"
	"diehard/streamer/sim/simnet"
	"diehard/streamer/sim/simpg"
	"diehard/streamer/sink"
)

const (
	eventLog   = "event_log"
	deadLetter = "event_dead_letter"
	pgAddress  = "127.0.0.1:5432"
	systemID   = "7000000000000000001"
)

// world is one run: the servers, the streamers, and what is known of them.
type world struct {
	*trace
	profile
	seed      uint64
	random    *rand.Rand
	net       *simnet.Network
	pg        *simpg.Server
	pgHost    *simnet.Host
	ch        *simch.Cluster
	chHosts   []*simnet.Host
	lagUntil  []time.Time // of each ClickHouse node; guarded by the cluster's lock
	check     *checker
	streamers []*streamer
	slots     int // how many the operator has made
	number    int // of the last streamer
	schedule  []string
	poison    bool
	quiet     time.Duration // before the next fault
	resting   atomic.Bool
	othersAt  time.Time    // when other writers last wrote
	slowWork  atomic.Int64 // of the next insert
	trapMu    sync.Mutex
	trap      *trap                      // springs when the next intent is written
	startLSN  pglogrepl.LSN              // of the streamers to come
	storm     atomic.Bool                // inserts have a fate
	fixedFate atomic.Pointer[simch.Fate] // of every insert
}

var columnLine = regexp.MustCompile(`(?m)^ {4}([a-z_]+) +([A-Z][A-Za-z0-9]+(?:\([^)]*\)+)?) `)

// schema reads the tables' columns out of the migrations.
func schema(t *testing.T) map[string][]simch.Column {
	t.Helper()
	tables := make(map[string][]simch.Column)
	for name, pattern := range map[string]string{eventLog: "*event_log.sql", deadLetter: "*dead_letter.sql"} {
		files, err := filepath.Glob("../../migrations/clickhouse/" + pattern)
		require.NoError(t, err)
		require.Len(t, files, 1)
		text, err := os.ReadFile(files[0])
		require.NoError(t, err)
		for _, m := range columnLine.FindAllStringSubmatch(string(text), -1) {
			tables[name] = append(tables[name], simch.Column{Name: m[1], Type: m[2]})
		}
		require.NotEmpty(t, tables[name])
	}
	return tables
}

func newWorld(t *testing.T, seed uint64, p profile) *world {
	t.Helper()
	tables := schema(t)
	w := &world{
		trace: newTrace(600), profile: p, seed: seed, random: rand.New(rand.NewPCG(seed, 1)),
		pg: simpg.New(systemID), poison: p.poison,
	}
	w.storm.Store(true)
	w.lagUntil = make([]time.Time, p.nodes)
	w.net = simnet.New(seed, shortDelays)
	w.check = newChecker(w.trace)
	fates := rand.New(rand.NewPCG(seed, 2))
	lags := rand.New(rand.NewPCG(seed, 3))
	w.ch = simch.New(simch.Options{
		Kind: p.kind, Nodes: p.nodes, Window: p.window, Age: p.windowAge, Schema: tables,
		Fate: func() simch.Fate { return w.fate(fates) },
		Away: func(node int) bool { return w.chHosts[node].Frozen() },
		Lag: func(node int) time.Duration {
			return time.Duration(lags.ExpFloat64()*float64(p.lag)) + max(0, time.Until(w.lagUntil[node]))
		},
	})
	w.ch.Written = w.check.written
	w.ch.Dropped = func(p *simch.Part) {
		w.add("ClickHouse: %s drops %d rows, token %s, query %s", p.Table, len(p.Rows), p.Token, p.QueryID)
	}
	w.pg.Intended = w.intended
	w.pg.Confirmed, w.pg.Created = w.check.confirmed, w.check.created
	steps := rand.New(rand.NewPCG(seed, 6))
	w.pg.Delay = func() time.Duration { return time.Duration(steps.ExpFloat64() * float64(100*time.Microsecond)) }
	w.pgHost = w.net.Host("pg")
	w.net.Listen(pgAddress, w.pgHost, w.pg.Accept)
	for i := range p.nodes {
		host := w.net.Host(fmt.Sprintf("ch%d", i))
		w.chHosts = append(w.chHosts, host)
		w.net.Listen(host.Name, host, w.ch.Node(i).Accept)
	}
	if p.view {
		w.ch.AddView(eventLog)
	}
	if p.poison {
		w.ch.SetConstraint(eventLog, true)
		w.ch.SetIndex(eventLog, true)
	}
	return w
}

// streamer is one process.
type streamer struct {
	name string
	host *simnet.Host
	stop context.CancelFunc
	over chan error
	ch   []clickhouse.Conn
	p    *pipeline.Pipeline
}

func (w *world) slot() string { return fmt.Sprintf("outbox_streamer%d", w.slots) }

// start runs a streamer.
func (w *world) start() *streamer {
	w.number++
	s := &streamer{name: fmt.Sprintf("s%d", w.number), over: make(chan error, 1)}
	s.host = w.net.Host(s.name)
	balance := rand.New(rand.NewPCG(w.seed, uint64(1000+w.number)))
	options := &ch.Options{
		Protocol: ch.Native, Addr: []string{"ch"}, Auth: ch.Auth{Database: "default", Username: "default"},
		Compression: &ch.Compression{Method: ch.CompressionNone},
		DialTimeout: 5 * time.Second, ReadTimeout: 5 * time.Minute, MaxOpenConns: 4, MaxIdleConns: 4,
		DialContext: func(ctx context.Context, _ string) (net.Conn, error) {
			return s.host.Dial(ctx, w.chHosts[balance.IntN(len(w.chHosts))].Name)
		},
	}
	if w.quorum > 0 {
		options.Settings = ch.Settings{"insert_quorum": w.quorum, "insert_quorum_parallel": 0}
	}
	reader := *options
	reader.MaxOpenConns, reader.MaxIdleConns = 1, 1
	for _, o := range []*ch.Options{options, &reader} {
		conn, err := clickhouse.OpenOptions(o)
		if err != nil {
			w.check.complain("open: %v", err)
			return s
		}
		s.ch = append(s.ch, conn)
	}
	s.p = pipeline.New(pipeline.Config{
		PostgresURL: "postgres://sim@" + pgAddress + "/sim?sslmode=disable&connect_timeout=5",
		Origin: replication.Origin{
			Slot: w.slot(), Publication: "outbox_pub",
			Dial: func(ctx context.Context, _, address string) (net.Conn, error) { return s.host.Dial(ctx, address) },
		},
		StartLSN: w.startLSN, SenderTimeout: 10 * time.Second,
		Tables: sink.Tables{EventLog: eventLog, DeadLetter: deadLetter, Quorum: w.quorum > 0, Cluster: w.cluster}, Reader: s.ch[1],
		Limits:        batch.Limits{Rows: w.rows, Bytes: batchBytes},
		FlushInterval: 200 * time.Millisecond, InsertTimeout: w.insertTimeout / time.Duration(1+w.number%2), DrainTimeout: 5 * time.Second,
	}, s.ch[0], slog.New(handler{w.trace, s.name}), observer{checker: w.check})
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() {
		err := s.p.Run(ctx)
		w.add("%s ends: %v", s.name, err)
		for _, conn := range s.ch {
			_ = conn.Close()
		}
		s.over <- err
	}()
	w.streamers = append(w.streamers, s)
	return s
}

// ended takes the streamers out that have stopped, and judges those that refused.
func (w *world) ended() {
	var alive []*streamer
	refused := false
	for _, s := range w.streamers {
		select {
		case err := <-s.over:
			s.stop()
			if err != nil && !s.host.Dead() && !strings.HasPrefix(err.Error(), "shutdown: ") {
				refused = true
				w.check.refused(err)
			}
		default:
			w.measure(s)
			alive = append(alive, s)
		}
	}
	w.streamers = alive
	if refused {
		w.operate()
	}
	for len(w.streamers) < w.profile.streamers {
		w.start()
	}
}

// measure holds a streamer to its bounds: two batches, and one row beyond the bytes of each.
func (w *world) measure(s *streamer) {
	const largest = 21 << 10
	if rows, bytes := s.p.Progress().Buffered(); rows > 2*int64(w.rows) || bytes > 2*(batchBytes+largest) {
		w.check.complain("%s holds %d rows of %d bytes", s.name, rows, bytes)
	}
}

const batchBytes = 64 << 10

// operate is what a message of refusal asks for: every streamer stops, the slot gets a
// new name, and a replay brings back what is missing.
func (w *world) operate() {
	w.add("the operator makes a new slot")
	for _, s := range w.streamers {
		s.host.Kill(false)
		s.stop()
		_ = ended(s)
	}
	w.streamers = nil
	w.slots++
	w.check.excuse()
}

// close ends everything.
func (w *world) close() {
	for _, s := range w.streamers {
		s.host.Thaw()
		s.host.Kill(true)
		s.stop()
		_ = ended(s)
	}
	for _, h := range w.chHosts {
		h.Thaw()
	}
	w.pgHost.Thaw()
	w.net.Close()
	w.pg.Wait()
	w.ch.Wait()
	pause(10 * time.Minute) // timers of connections that were given up
}

// ended waits until a streamer that was killed is over; what it says does not matter.
func ended(s *streamer) error {
	select {
	case err := <-s.over:
		return err
	case <-time.After(time.Hour):
		return errors.New("it does not end")
	}
}

func pause(d time.Duration) { <-time.After(d) }

// isPoison reports what ClickHouse refuses: for a constraint, or for an index.
func isPoison(context string) bool {
	return strings.Contains(context, "poison") || strings.Contains(context, "toxic")
}
