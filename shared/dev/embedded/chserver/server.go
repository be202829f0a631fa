// Package chserver serves ClickHouse's native TCP protocol over libchdb, the
// ClickHouse engine as a library, for development and tests on machines without
// a ClickHouse server.
//
// It runs real queries on a real engine, with its storage, settings, errors and
// deduplication. Its users may do everything except reach files, programs and other
// servers. It has no TLS and no clusters; JSON arrives as text, and aggregate states
// must be cast before they can be selected.
package chserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// Options say what to serve and where.
type Options struct {
	LibPath  string            // libchdb.so
	DataDir  string            // created if absent; one process at a time
	Addr     string            // host:port; defaults to 127.0.0.1:19000
	Replicas []string          // host:port of further listeners, see replica
	Lag      time.Duration     // until an insert is visible through another listener
	Users    map[string]string // password of each user; all have the same rights
	Profile  string            // XML in the profile of the users: settings and constraints
	User     string            // XML in the user: row policies
	Server   string            // XML in the configuration of the server: clusters
	Grants   string            // further privileges of the users, such as POSTGRES; empty for none
	Log      *slog.Logger      // defaults to slog.Default
}

// DefaultAddr is the default address.
const DefaultAddr = "127.0.0.1:19000"

// stopGrace is how long running queries may take to end when the server stops.
const stopGrace = 3 * time.Second

// acceptPause is the time between tries to accept a client after a failure.
const acceptPause = 100 * time.Millisecond

// Serve runs the server until ctx is done, then stops accepting, gives running
// queries a moment to end and closes the engine. It returns nil after such a stop,
// and an error when it cannot start. One process can serve only once.
func Serve(ctx context.Context, o Options) error {
	if o.Addr == "" {
		o.Addr = DefaultAddr
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	var listeners []net.Listener
	for _, addr := range append([]string{o.Addr}, o.Replicas...) {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("serve ClickHouse: %w", err)
		}
		defer listener.Close() //nolint:revive // at the end of the server
		listeners = append(listeners, listener)
	}
	defer handOnQuit()()
	s, err := newServer(o)
	if err != nil {
		return fmt.Errorf("serve ClickHouse: %w", err)
	}
	o.Log.Info("embedded ClickHouse is ready", "addr", o.Addr, "replicas", o.Replicas, "version", s.version, "data", o.DataDir)
	var accepting sync.WaitGroup
	for i, listener := range listeners {
		accepting.Go(func() { s.accept(ctx, s.replicas[i], listener) })
	}
	accepting.Wait()
	s.stop()
	return nil
}

type server struct {
	engine   *engine
	root     *session // keeps the engine running while no client is connected
	version  string
	users    map[string]string
	profile  string
	hello    proto.ServerHello
	replicas []*replica // one for each listener
	lag      time.Duration
	queries  atomic.Uint64 // number of the last query
	log      *slog.Logger

	inserting sync.Mutex  // guards root and the list of parts during an insert
	merging   atomic.Bool // whether a goroutine waits to start merges
	hasViews  atomic.Bool // whether there may be a materialized view

	stopping atomic.Bool

	mu      sync.Mutex
	clients map[*client]struct{}
	serving sync.WaitGroup
}

func newServer(o Options) (*server, error) {
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return nil, err
	}
	if err := writeConfig(o); err != nil {
		return nil, err
	}
	engine, err := loadEngine(o.LibPath, o.DataDir)
	if err != nil {
		return nil, err
	}
	root, err := engine.open()
	if err != nil {
		return nil, err
	}
	s := &server{engine: engine, root: root, lag: o.Lag, users: o.Users, profile: o.Profile, log: o.Log, clients: make(map[*client]struct{})}
	for range len(o.Replicas) + 1 {
		s.replicas = append(s.replicas, &replica{server: s})
	}
	err = root.query("SELECT version(), timezone()"+whole, nil, func(native []byte) error {
		table, err := stringTable(native)
		if err == nil {
			s.version = table[0][0]
			s.hello = helloOf(s.version, table[1][0])
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, s.findViews()
}

// findViews aggregates nothing: a profile may change what an aggregate of no rows is.
func (s *server) findViews() error {
	return s.root.query("SELECT name FROM system.tables WHERE engine = 'MaterializedView'"+whole, nil, func(native []byte) error {
		table, err := stringTable(native)
		s.hasViews.Store(len(table) > 0 && len(table[0]) > 0)
		return err
	})
}

// helloOf announces the engine's version.
func helloOf(version, timezone string) proto.ServerHello {
	var number [3]int
	for i, part := range strings.SplitN(version, ".", 4) {
		if i < len(number) {
			number[i], _ = strconv.Atoi(part)
		}
	}
	return proto.ServerHello{
		Name: "ClickHouse", DisplayName: "embedded ClickHouse", Timezone: timezone,
		Major: number[0], Minor: number[1], Patch: number[2], Revision: revision,
	}
}

// accept serves clients until ctx is done.
func (s *server) accept(ctx context.Context, r *replica, listener net.Listener) {
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Error("accept client", "error", err)
			select { // out of file descriptors, most likely
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		c := newClient(r, conn)
		s.mu.Lock()
		s.clients[c] = struct{}{}
		s.mu.Unlock()
		s.serving.Go(func() { s.serve(c) })
	}
}

func (s *server) serve(c *client) {
	if err := c.serve(); err != nil && !s.stopping.Load() {
		s.log.Warn("client connection", "client", c.conn.RemoteAddr().String(), "error", err)
	}
	_ = c.conn.Close()
	s.mu.Lock()
	delete(s.clients, c)
	s.mu.Unlock()
}

// stop disconnects the clients, which ends what they run, and closes the engine
// if nothing is left in it. Data is safe either way.
func (s *server) stop() {
	s.stopping.Store(true)
	s.mu.Lock()
	for c := range s.clients {
		_ = c.conn.Close()
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		s.serving.Wait()
		s.root.close()
		s.engine.shutdown()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopGrace):
		s.log.Warn("embedded ClickHouse stops with queries still running")
	}
}
