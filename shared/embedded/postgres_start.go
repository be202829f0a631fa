package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	postgresName    = "PostgreSQL"
	postgresPortVar = "EMBEDDED_POSTGRES_PORT"
	// startPatience covers crash recovery of a large WAL on a slow disk.
	startPatience = 3 * time.Minute
	startAttempts = 5
	// passingPatience is for the children of a killed postmaster on a busy machine.
	passingPatience = 30 * time.Second
)

// environment is what the engines see of ours: nothing that could change what
// they do, such as PGDATA or LC_ALL.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}

// initialise runs initdb unless that was done before. It works in a directory
// aside and renames it, so that a killed initdb leaves nothing half made.
func (p *Postgres) initialise(ctx context.Context) error {
	raw, err := os.ReadFile(filepath.Join(p.dataDir, "PG_VERSION"))
	if err == nil {
		if found := strings.TrimSpace(string(raw)); found != p.opts.Version {
			return fmt.Errorf("%s holds data of PostgreSQL %s, not %s: set EMBEDDED_POSTGRES_VERSION=%s, or remove it",
				p.opts.DataDir, found, p.opts.Version, found)
		}
		return checkDisk(p.dataDir, dataBytes, "PostgreSQL's data")
	}
	if err := checkDisk(p.dataDir, dataBytes, "PostgreSQL's data"); err != nil {
		return err
	}
	fresh := p.dataDir + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.Mkdir(fresh, 0o700), p.who.own(fresh)); err != nil {
		return fmt.Errorf("initialise PostgreSQL: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.binDir, "initdb"), "-D", fresh, "--username=postgres",
		"--encoding=UTF8", "--locale=C", "--auth=trust", "--no-sync")
	cmd.Dir, cmd.Env, cmd.SysProcAttr = fresh, environment(), p.who.sysProcAttr()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initialise PostgreSQL in %s: %w: %s", fresh, err, out)
	}
	if err := os.Remove(p.dataDir); err != nil {
		return fmt.Errorf("%s is not a PostgreSQL data directory; remove it: %w", p.opts.DataDir, err)
	}
	return os.Rename(fresh, p.dataDir)
}

// adoptOrStart leaves p running, whatever state the data directory is in.
func (p *Postgres) adoptOrStart(ctx context.Context) error {
	if left := readPostmaster(p.dataDir); left.alive() {
		p.process, p.port = left.process, left.port
		if (p.opts.Adopt || left.sameOptions(p)) && p.ready(ctx) == nil {
			return nil
		}
		p.opts.Log.printf("restarting PostgreSQL, which runs with other options (process %d)", left.pid)
		if err := p.Stop(ctx); err != nil {
			return err
		}
	} else if err := left.remove(); err != nil {
		return err
	}
	if p.opts.Port != 0 {
		if err := checkPort(p.opts.Port, postgresName, postgresPortVar); err != nil {
			return err
		}
	}
	if err := p.initialise(ctx); err != nil {
		return err
	}
	// A free port may be taken before the server is there, and children of a
	// killed postmaster may need a moment to notice: both pass.
	for began := time.Now(); ; {
		err := p.launch(ctx)
		if !errors.Is(err, errPassing) || ctx.Err() != nil || time.Since(began) > passingPatience {
			return err
		}
	}
}

// errPassing marks a failed launch that another one may cure.
var errPassing = errors.New("may pass")

func (p *Postgres) launch(ctx context.Context) error {
	p.port = p.opts.Port
	if p.port == 0 {
		port, err := freePort()
		if err != nil {
			return err
		}
		p.port = port
	}
	var logged int64
	if info, err := os.Stat(p.opts.LogFile); err == nil {
		logged = info.Size()
	}
	cmd := exec.Command(filepath.Join(p.binDir, "postgres"), p.arguments(p.port)...) //nolint:noctx // it outlives ctx
	cmd.Dir, cmd.Env, cmd.SysProcAttr = p.dataDir, environment(), p.who.sysProcAttr()
	server, err := spawn(cmd, p.opts.LogFile)
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	p.process = server
	if err := p.ready(ctx); err != nil {
		if server.alive() {
			return errors.Join(err, p.process.kill(ctx))
		}
		return explainPostgres(logTail(p.opts.LogFile, logged), p.opts.LogFile)
	}
	return nil
}

// explainPostgres makes an error of the log of a server that ended at once.
func explainPostgres(log, logFile string) error {
	switch {
	case strings.Contains(log, "is still in use"), strings.Contains(log, "could not create any TCP/IP sockets"),
		strings.Contains(log, "already exists"):
		time.Sleep(200 * time.Millisecond) //nolint:forbidigo // nothing tells when the orphans of a killed server are gone
		return fmt.Errorf("PostgreSQL does not start (%w): %s", errPassing, log)
	case strings.Contains(log, "No space left on device"):
		return errors.New("PostgreSQL does not start, the disk is full: free some space and try again")
	default:
		return fmt.Errorf("PostgreSQL does not start; its log %s says: %s", logFile, log)
	}
}

// ready waits until the server answers a query.
func (p *Postgres) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		conn, err := pgconn.Connect(ctx, p.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		if !p.process.alive() {
			return errors.New("PostgreSQL ended")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not answer; see %s: %w", p.opts.LogFile, err)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func (p *Postgres) createDatabase(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer conn.Close(ctx)
	var exists bool
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&exists)
	if err == nil && !exists {
		_, err = conn.Exec(ctx, `CREATE DATABASE `+pgx.Identifier{name}.Sanitize())
	}
	return wrap("create database "+name, err)
}

// postmaster is what postmaster.pid and postmaster.opts say about the server
// that runs, or ran, on a data directory.
type postmaster struct {
	*process
	port    int
	options string
	pidFile string
}

// readPostmaster returns a postmaster that is not alive if there is none.
func readPostmaster(dataDir string) postmaster {
	found := postmaster{pidFile: filepath.Join(dataDir, "postmaster.pid")}
	raw, err := os.ReadFile(found.pidFile)
	if err != nil {
		return found
	}
	// Lines: process id, data directory, start time, port, …
	lines := strings.Split(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || len(lines) < 4 {
		return found
	}
	// After a reboot the id may be somebody else's.
	if command := commandLine(pid); !strings.Contains(command, dataDir) {
		return found
	}
	found.process = &process{pid: pid}
	found.port, _ = strconv.Atoi(strings.TrimSpace(lines[3]))
	options, _ := os.ReadFile(filepath.Join(dataDir, "postmaster.opts"))
	found.options = string(options)
	return found
}

// sameOptions reports whether the running server is what p wants.
func (m postmaster) sameOptions(p *Postgres) bool {
	port := p.opts.Port
	if port == 0 {
		port = m.port
	}
	want := filepath.Join(p.binDir, "postgres")
	for _, arg := range p.arguments(port) {
		want += ` "` + arg + `"`
	}
	return strings.TrimSpace(m.options) == want
}

// remove deletes the pid file of a server that is gone: PostgreSQL itself
// refuses to start if the process id was reused by its own user.
func (m postmaster) remove() error {
	if err := os.Remove(m.pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// FindPostgres returns the server that runs on dataDir, nil if none does. It can
// be stopped and killed, but not started again.
func FindPostgres(dataDir string) *Postgres {
	real, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return nil
	}
	found := readPostmaster(real)
	if !found.alive() {
		return nil
	}
	version, _ := os.ReadFile(filepath.Join(real, "PG_VERSION"))
	opts := PostgresOptions{Version: strings.TrimSpace(string(version)), DataDir: dataDir}
	return &Postgres{opts: opts, dataDir: real, port: found.port, process: found.process}
}
