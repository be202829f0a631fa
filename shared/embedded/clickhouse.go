package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"diehard/shared/clickhouse"
)

const (
	clickhouseName    = "ClickHouse"
	clickhousePortVar = "EMBEDDED_CLICKHOUSE_PORT"
)

// ClickHouseOptions says where to run ClickHouse.
type ClickHouseOptions struct {
	// DataDir keeps the data. It is created when it does not exist.
	DataDir string
	// Port of the native protocol on Host. 0 keeps the port of an engine that
	// runs, or picks a free one.
	Port int
	// LogFile gets the server's log, appended. Defaults to DataDir + ".log".
	LogFile string
	// Adopt keeps an engine that runs with another port or build as it is.
	Adopt bool
	// Log receives progress. May be nil.
	Log LogFunc
}

// ClickHouse is a ClickHouse engine that serves the native protocol on the
// loopback interface to user "default", without a password. Methods are not
// safe for concurrent use.
type ClickHouse struct {
	opts    ClickHouseOptions
	library string
	server  string // the devstack program
	build   string // hash of that program
	port    int
	process *process
}

// clickhouseState is what a running server tells in its lock file.
type clickhouseState struct {
	PID   int    `json:"pid"`
	Port  int    `json:"port"`
	Build string `json:"build"`
}

// StartClickHouse makes sure that a ClickHouse runs on opts.DataDir and accepts
// connections. An engine that already runs there is adopted, and restarted first
// if it runs on another port or an older build of its server. The engine
// outlives this process and ctx.
func StartClickHouse(ctx context.Context, opts ClickHouseOptions) (*ClickHouse, error) {
	dataDir, err := filepath.Abs(opts.DataDir)
	if err != nil {
		return nil, err
	}
	opts.DataDir = dataDir
	if opts.LogFile == "" {
		opts.LogFile = opts.DataDir + ".log"
	}
	library, err := ClickHouseLibrary(ctx, opts.Log)
	if err != nil {
		return nil, err
	}
	c := &ClickHouse{opts: opts, library: library}
	if c.server, err = Devstack(ctx); err != nil {
		return nil, err
	}
	if c.build, err = hashFile(c.server); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.DataDir, 0o755); err != nil {
		return nil, err
	}
	if err := checkDisk(opts.DataDir, dataBytes, "ClickHouse's data"); err != nil {
		return nil, err
	}
	lock, err := Lock(ctx, opts.DataDir+".start", nil)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	return c, c.adoptOrStart(ctx)
}

// Name returns ClickHouse.
func (c *ClickHouse) Name() string { return clickhouseName }

// Port returns the port on Host.
func (c *ClickHouse) Port() int { return c.port }

// PID returns the process id of the server.
func (c *ClickHouse) PID() int { return c.process.pid }

// Alive reports whether the server runs; it may not answer all the same.
func (c *ClickHouse) Alive() bool { return c.process.alive() }

// DataDir returns where the data is.
func (c *ClickHouse) DataDir() string { return c.opts.DataDir }

// Config returns how to connect to a database of the engine.
func (c *ClickHouse) Config(database string) clickhouse.Config {
	return clickhouse.Config{
		Host: Host, Port: uint16(c.port), User: "default", Database: database,
		EventLogTable: "event_log", DeadLetterTable: "event_dead_letter",
	}
}

// Stop ends the server in order; after 20 seconds, by force.
func (c *ClickHouse) Stop(ctx context.Context) error {
	return wrap("stop ClickHouse", c.process.stop(ctx, 20*time.Second, syscall.SIGTERM))
}

// Kill ends the server as kill -9 does, and waits until it is gone.
func (c *ClickHouse) Kill() error {
	return wrap("kill ClickHouse", c.process.kill(context.Background()))
}

// Start runs a stopped or killed server again, with the same port and data.
func (c *ClickHouse) Start(ctx context.Context) error {
	c.opts.Port = c.port
	return c.adoptOrStart(ctx)
}

// Pause freezes the server: connections stay open, nothing answers.
func (c *ClickHouse) Pause() error { return syscall.Kill(c.process.pid, syscall.SIGSTOP) }

// Resume ends a Pause.
func (c *ClickHouse) Resume() error { return syscall.Kill(c.process.pid, syscall.SIGCONT) }

func (c *ClickHouse) adoptOrStart(ctx context.Context) error {
	if found := FindClickHouse(c.opts.DataDir); found != nil {
		c.process, c.port = found.process, found.port
		samePort := c.opts.Port == 0 || c.opts.Port == found.port
		same := samePort && found.build == c.build
		if (same || c.opts.Adopt) && c.ready(ctx) == nil {
			return nil
		}
		c.opts.Log.printf("restarting ClickHouse, which runs with other options (process %d)", found.PID())
		if err := c.Stop(ctx); err != nil {
			return err
		}
	}
	var err error
	for range startAttempts {
		if err = c.launch(ctx); !errors.Is(err, errPassing) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (c *ClickHouse) launch(ctx context.Context) error {
	c.port = c.opts.Port
	if c.port == 0 {
		port, err := freePort()
		if err != nil {
			return err
		}
		c.port = port
	} else if err := checkPort(c.port, clickhouseName, clickhousePortVar); err != nil {
		return err
	}
	var logged int64
	if info, err := os.Stat(c.opts.LogFile); err == nil {
		logged = info.Size()
	}
	cmd := exec.Command(c.server, "clickhouse-server", //nolint:noctx // it outlives ctx
		"--library", c.library, "--data", c.opts.DataDir, "--port", strconv.Itoa(c.port), "--build", c.build)
	cmd.Env = environment()
	server, err := spawn(cmd, c.opts.LogFile)
	if err != nil {
		return fmt.Errorf("start ClickHouse: %w", err)
	}
	c.process = server
	if err := c.ready(ctx); err != nil {
		if server.alive() {
			return errors.Join(err, c.process.kill(ctx))
		}
		return explainClickHouse(logTail(c.opts.LogFile, logged), c.opts.LogFile)
	}
	return nil
}

func explainClickHouse(log, logFile string) error {
	if strings.Contains(log, "address already in use") {
		return fmt.Errorf("ClickHouse does not start (%w): %s", errPassing, log)
	}
	return fmt.Errorf("ClickHouse does not start; its log %s says: %s", logFile, log)
}

// ready waits until the server answers a ping.
func (c *ClickHouse) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		conn, err := clickhouse.Open(ctx, c.Config("default"))
		if err == nil {
			return conn.Close()
		}
		if !c.process.alive() {
			return errors.New("ClickHouse ended")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ClickHouse does not answer; see %s: %w", c.opts.LogFile, err)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// FindClickHouse returns the server that runs on dataDir, nil if none does. It
// can be stopped and killed, but not started again.
func FindClickHouse(dataDir string) *ClickHouse {
	path := dataDir + ".lock"
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	lock, err := TryLock(path, false)
	if err != nil {
		return nil
	}
	if lock != nil { // nobody holds it
		lock.Unlock()
		return nil
	}
	raw, err := os.ReadFile(path)
	var state clickhouseState
	if err != nil || json.Unmarshal(raw, &state) != nil || !pidAlive(state.PID) {
		return nil
	}
	return &ClickHouse{
		opts: ClickHouseOptions{DataDir: dataDir}, port: state.Port, build: state.Build, process: &process{pid: state.PID},
	}
}

// HoldClickHouse is for the server process: it takes the lock that makes it the
// only server on dataDir and lets others find it, with the port and the build it
// was started for. The kernel releases the lock when the process ends.
func HoldClickHouse(dataDir string, port int, build string) (*FileLock, error) {
	lock, err := TryLock(dataDir+".lock", true)
	if err != nil {
		return nil, err
	}
	if lock == nil {
		return nil, fmt.Errorf("another ClickHouse runs on %s", dataDir)
	}
	state, err := json.Marshal(clickhouseState{PID: os.Getpid(), Port: port, Build: build})
	if err != nil {
		return nil, err
	}
	return lock, lock.Write(state)
}

func hashFile(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8]), nil
}
