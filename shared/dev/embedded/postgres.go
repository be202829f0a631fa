package embedded

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// PostgresOptions says which PostgreSQL to run, and where.
type PostgresOptions struct {
	// Version is the major version, "14" to "18". Defaults to PostgresVersion().
	Version string
	// DataDir keeps the data. It is created and initialised when it does not
	// exist; it becomes a symbolic link where the PostgreSQL user cannot reach it.
	DataDir string
	// Port on Host. 0 keeps the port of an engine that runs, or picks a free one.
	Port int
	// Database is created if it does not exist. Empty creates none.
	Database string
	// Settings override the defaults of postgresql.conf and of this package.
	Settings map[string]string
	// LogFile gets the server's log, appended. Defaults to DataDir + ".log".
	LogFile string
	// Adopt keeps an engine that runs with another port or settings as it is.
	Adopt bool
	// Log receives progress. May be nil.
	Log LogFunc
}

// Postgres is a PostgreSQL server on the loopback interface. Its superuser is
// "postgres", with the password of the data folder. Methods are not safe for concurrent use.
type Postgres struct {
	opts    PostgresOptions
	binDir  string
	dataDir string // real path
	port    int
	user    *osUser
	process *process

	password string
	upgrade  bool // start in binary upgrade mode
}

// StartPostgres makes sure that the PostgreSQL of opts runs and accepts
// connections. An engine that already runs on DataDir is adopted, and restarted
// first if it runs with other options. The engine outlives this process and ctx.
func StartPostgres(ctx context.Context, opts PostgresOptions) (*Postgres, error) {
	if opts.Version == "" {
		opts.Version = PostgresVersion()
	}
	dataDir, err := filepath.Abs(opts.DataDir)
	if err != nil {
		return nil, err
	}
	opts.DataDir = dataDir
	if opts.LogFile == "" {
		opts.LogFile = opts.DataDir + ".log"
	}
	engine, err := fetch(ctx, "postgres-"+opts.Version, opts.Log)
	if err != nil {
		return nil, err
	}
	p := &Postgres{opts: opts, binDir: filepath.Join(engine, "bin"), user: unprivileged()}
	lock, err := Lock(ctx, opts.DataDir+".lock", nil)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if p.dataDir, err = relocate(ctx, opts.DataDir, p.user); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", opts.DataDir, err)
	}
	var fresh bool
	if p.password, fresh, err = ensurePassword(opts.DataDir); err != nil {
		return nil, err
	}
	if fresh {
		if err := p.resetPassword(ctx); err != nil {
			return nil, err
		}
	}
	if err := p.adoptOrStart(ctx); err != nil {
		return nil, err
	}
	return p, p.createDatabase(ctx, opts.Database)
}

// Name returns PostgreSQL and its major version.
func (p *Postgres) Name() string { return postgresName + " " + p.opts.Version }

// Port returns the port on Host.
func (p *Postgres) Port() int { return p.port }

// PID returns the process id of the postmaster.
func (p *Postgres) PID() int { return p.process.pid }

// Alive reports whether the server process runs; it may not accept connections.
func (p *Postgres) Alive() bool { return p.process.alive() }

// DataDir returns the data folder, as given in the options.
func (p *Postgres) DataDir() string { return p.opts.DataDir }

// URL returns the connection string of a database, as superuser, with the password.
func (p *Postgres) URL(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", p.password), Path: "/" + database, RawQuery: "sslmode=disable",
		Host: Host + ":" + strconv.Itoa(p.port),
	}
	return u.String()
}

// Stop is a fast shutdown: it disconnects clients and writes a checkpoint. If that
// takes longer than 20 seconds, because a replication client does not confirm what
// it received, an immediate shutdown follows; the next start recovers from the WAL.
func (p *Postgres) Stop(ctx context.Context) error {
	err := p.process.stop(ctx, 20*time.Second, syscall.SIGINT, syscall.SIGQUIT)
	return wrap("stop PostgreSQL", err)
}

// StopImmediate is an immediate shutdown. The next start recovers from the WAL.
func (p *Postgres) StopImmediate(ctx context.Context) error {
	err := p.process.stop(ctx, 10*time.Second, syscall.SIGQUIT)
	return wrap("stop PostgreSQL", err)
}

// Kill sends SIGKILL to the postmaster and waits until it has ended.
func (p *Postgres) Kill() error {
	return wrap("kill PostgreSQL", p.process.kill(context.Background()))
}

// Start runs a stopped or killed server again, with the same port and options.
func (p *Postgres) Start(ctx context.Context) error {
	p.opts.Port = p.port
	return p.adoptOrStart(ctx)
}

// StartForUpgrade is Start in the mode in which pg_upgrade runs a server.
func (p *Postgres) StartForUpgrade(ctx context.Context) error {
	p.upgrade = true
	defer func() { p.upgrade = false }()
	return p.Start(ctx)
}

// Restart is a fast shutdown and a start.
func (p *Postgres) Restart(ctx context.Context) error {
	return errors.Join(p.Stop(ctx), p.Start(ctx))
}

func (p *Postgres) arguments(port int) []string {
	settings := map[string]string{
		"listen_addresses":        Host,
		"unix_socket_directories": "",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"log_line_prefix":         "%m [%p] %d ",
		"wal_level":               "logical",
		"max_wal_senders":         "20",
		"max_replication_slots":   "20",
		"max_connections":         "200",
		// A forgotten slot must not fill a developer's disk.
		"max_slot_wal_keep_size": "8GB",
	}
	for name, value := range p.opts.Settings {
		settings[name] = value
	}
	args := []string{"-D", p.dataDir, "-p", strconv.Itoa(port)}
	names := make([]string, 0, len(settings))
	for name := range settings {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		args = append(args, "-c", name+"="+settings[name])
	}
	if p.upgrade {
		args = append(args, "-b", "-c", "max_slot_wal_keep_size=-1") // without the latter it does not start
	}
	return args
}

// wrap adds what was being done to an error; nil stays nil.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, err)
}
