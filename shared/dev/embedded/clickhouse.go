package embedded

import (
	"cmp"
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
	// Address to listen on. Defaults to Host.
	Address string
	// Port of the native protocol on Address. 0 keeps the port of an engine that
	// runs, or picks a free one.
	Port int
	// LogFile gets the server's log, appended. Defaults to DataDir + ".log".
	LogFile string
	// Replicas is the number of further listeners on free ports. Together they look
	// like the replicas of one service: see chserver's replica. An insert is visible
	// through another listener after ReplicaLag.
	Replicas   int
	ReplicaLag time.Duration
	// Profile is XML in the profile of user default (settings and constraints), User in the
	// user (row policies), Server in the server's configuration (clusters). A running engine
	// keeps its own.
	Profile, User, Server string
	// Grants are further privileges of user default, such as POSTGRES, which the engine
	// does not give by itself.
	Grants string
	// Adopt keeps an engine that runs with another port or build as it is.
	Adopt bool
	// Log receives progress. May be nil.
	Log LogFunc
}

// ClickHouse is a ClickHouse engine that serves the native protocol on the
// loopback interface to user "default", with the password of the data folder.
// Methods are not safe for concurrent use.
type ClickHouse struct {
	opts    ClickHouseOptions
	library string
	server  string // the devstack program
	build   string // hash of that program
	port    int
	process *process

	replicas []int // ports of further listeners
	password string
}

// clickhouseState is the content of a running server's lock file.
type clickhouseState struct {
	PID      int    `json:"pid"`
	Port     int    `json:"port"`
	Replicas []int  `json:"replicas,omitempty"`
	Build    string `json:"build"`
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
	if err := os.MkdirAll(opts.DataDir, 0o700); err != nil {
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
	var fresh bool
	if c.password, fresh, err = ensurePassword(opts.DataDir); err != nil {
		return nil, err
	}
	if found := FindClickHouse(opts.DataDir); fresh && found != nil { // it knows another password
		if err := found.Stop(ctx); err != nil {
			return nil, err
		}
	}
	return c, c.adoptOrStart(ctx)
}

// Name returns ClickHouse.
func (c *ClickHouse) Name() string { return clickhouseName }

// Port returns the port on Host.
func (c *ClickHouse) Port() int { return c.port }

// PID returns the process id of the server.
func (c *ClickHouse) PID() int { return c.process.pid }

// Alive reports whether the server process runs; it may not accept connections.
func (c *ClickHouse) Alive() bool { return c.process.alive() }

// DataDir returns where the data is.
func (c *ClickHouse) DataDir() string { return c.opts.DataDir }

// Config returns how to connect to a database of the engine, through its first
// listener.
func (c *ClickHouse) Config(database string) clickhouse.Config {
	return clickhouse.Config{
		Host: cmp.Or(c.opts.Address, Host), Port: uint16(c.port), User: "default", Password: c.password, Database: database,
		EventLogTable: "event_log", DeadLetterTable: "event_dead_letter",
	}
}

// ReplicaConfigs returns how to connect through each of the listeners, the first
// one included.
func (c *ClickHouse) ReplicaConfigs(database string) []clickhouse.Config {
	configs := []clickhouse.Config{c.Config(database)}
	for _, port := range c.replicas {
		config := c.Config(database)
		config.Port = uint16(port)
		configs = append(configs, config)
	}
	return configs
}

// Stop sends SIGTERM, and SIGKILL after 20 seconds.
func (c *ClickHouse) Stop(ctx context.Context) error {
	return wrap("stop ClickHouse", c.process.stop(ctx, 20*time.Second, syscall.SIGTERM))
}

// Kill sends SIGKILL and waits until the server has ended.
func (c *ClickHouse) Kill() error {
	return wrap("kill ClickHouse", c.process.kill(context.Background()))
}

// Start runs a stopped or killed server again, with the same port and data.
func (c *ClickHouse) Start(ctx context.Context) error {
	c.opts.Port = c.port
	return c.adoptOrStart(ctx)
}

// Pause sends SIGSTOP: connections stay open, the server does not answer.
func (c *ClickHouse) Pause() error { return syscall.Kill(c.process.pid, syscall.SIGSTOP) }

// Resume ends a Pause.
func (c *ClickHouse) Resume() error { return syscall.Kill(c.process.pid, syscall.SIGCONT) }

func (c *ClickHouse) adoptOrStart(ctx context.Context) error {
	if found := FindClickHouse(c.opts.DataDir); found != nil {
		c.process, c.port, c.replicas = found.process, found.port, found.replicas
		samePort := c.opts.Port == 0 || c.opts.Port == found.port
		same := samePort && found.build == c.build && len(found.replicas) == c.opts.Replicas
		if (same || c.opts.Adopt) && c.engine().ready(ctx, c.process) == nil {
			return nil
		}
		c.opts.Log.printf("restarting ClickHouse, which runs with other options (process %d)", found.PID())
		if err := c.Stop(ctx); err != nil {
			return err
		}
	}
	var err error
	for range startAttempts {
		if err = c.launch(ctx); !errors.Is(err, errTransientStart) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (c *ClickHouse) launch(ctx context.Context) error {
	c.port = c.opts.Port
	if c.port == 0 {
		port, err := FreePort()
		if err != nil {
			return err
		}
		c.port = port
	} else if err := checkPort(c.port, clickhouseName, clickhousePortVar); err != nil {
		return err
	}
	if len(c.replicas) != c.opts.Replicas {
		c.replicas = nil
		for range c.opts.Replicas {
			port, err := FreePort()
			if err != nil {
				return err
			}
			c.replicas = append(c.replicas, port)
		}
	}
	args := []string{
		"clickhouse-server", "--library", c.library, "--data", c.opts.DataDir, "--address", cmp.Or(c.opts.Address, Host), "--port", strconv.Itoa(c.port), "--build", c.build,
		"--replica-lag", c.opts.ReplicaLag.String(), "--profile", c.opts.Profile, "--user", c.opts.User, "--server", c.opts.Server, "--grants", c.opts.Grants,
	}
	for _, port := range c.replicas {
		args = append(args, "--replica", strconv.Itoa(port))
	}
	cmd := exec.Command(c.server, args...) //nolint:noctx // it outlives ctx
	cmd.Env = environment()
	started, err := c.engine().start(ctx, cmd)
	if started != nil {
		c.process = started
	}
	return err
}

func (c *ClickHouse) engine() server {
	return server{name: clickhouseName, logFile: c.opts.LogFile, explain: explainClickHouse, ping: func(ctx context.Context) error {
		conn, err := clickhouse.Open(ctx, c.Config("default"))
		if err != nil {
			return err
		}
		return conn.Close()
	}}
}

func explainClickHouse(log, logFile string) error {
	if strings.Contains(log, "address already in use") {
		return fmt.Errorf("ClickHouse does not start (%w): %s", errTransientStart, log)
	}
	return fmt.Errorf("ClickHouse does not start; its log %s says: %s", logFile, log)
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
	if lock != nil { // no server holds it
		lock.Unlock()
		return nil
	}
	raw, err := os.ReadFile(path)
	var state clickhouseState
	if err != nil || json.Unmarshal(raw, &state) != nil || !pidAlive(state.PID) {
		return nil
	}
	password, _ := Password(dataDir) // without it, connecting fails with ClickHouse's own words
	return &ClickHouse{
		opts: ClickHouseOptions{DataDir: dataDir}, port: state.Port, build: state.Build, process: &process{pid: state.PID},
		replicas: state.Replicas, password: password,
	}
}

// HoldClickHouse is called by the server process. It takes the lock that makes it
// the only server on dataDir, and writes its port and build into the lock file for
// FindClickHouse. The kernel releases the lock when the process ends.
func HoldClickHouse(dataDir string, port int, replicas []int, build string) (*FileLock, error) {
	lock, err := TryLock(dataDir+".lock", true)
	if err != nil {
		return nil, err
	}
	if lock == nil {
		return nil, fmt.Errorf("another ClickHouse runs on %s", dataDir)
	}
	state, err := json.Marshal(clickhouseState{PID: os.Getpid(), Port: port, Replicas: replicas, Build: build})
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
