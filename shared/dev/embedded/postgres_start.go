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
	// startTimeout covers crash recovery of a large WAL on a slow disk.
	startTimeout  = 3 * time.Minute
	startAttempts = 5
	// transientTimeout is how long the children of a killed postmaster may take to end.
	transientTimeout = 30 * time.Second
)

// environment is the environment of the engines. It leaves out variables such as
// PGDATA and LC_ALL, which change what they do.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}

// initialise runs initdb unless that was done before. It runs in a temporary folder
// that is renamed at the end, so that a killed initdb leaves no half-made data.
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
	if err := errors.Join(os.RemoveAll(fresh), os.Mkdir(fresh, 0o700), p.user.chown(fresh)); err != nil {
		return fmt.Errorf("initialise PostgreSQL: %w", err)
	}
	secret := p.dataDir + ".initdb"
	if err := writePrivate(secret, p.password+"\n", p.user); err != nil {
		return fmt.Errorf("initialise PostgreSQL: %w", err)
	}
	defer os.Remove(secret)
	cmd := exec.CommandContext(ctx, filepath.Join(p.binDir, "initdb"), "-D", fresh, "--username=postgres", "--pwfile="+secret,
		"--encoding=UTF8", "--locale=C", "--auth="+authMethod, "--no-sync")
	cmd.Dir, cmd.Env, cmd.SysProcAttr = fresh, environment(), p.user.sysProcAttr()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initialise PostgreSQL in %s: %w: %s", fresh, err, out)
	}
	if err := os.Remove(p.dataDir); err != nil {
		return fmt.Errorf("%s is not a PostgreSQL data directory; remove it: %w", p.opts.DataDir, err)
	}
	return os.Rename(fresh, p.dataDir)
}

const authMethod = "scram-sha-256"

// hba lets clients of this machine in, with a password.
const hba = "host all all 127.0.0.1/32 " + authMethod + "\nhost replication all 127.0.0.1/32 " + authMethod + "\n"

// resetPassword gives the superuser of existing data, whose password is unknown, the
// one of p. A server that runs on the data is stopped first.
func (p *Postgres) resetPassword(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(p.dataDir, "PG_VERSION")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if found := readPostmaster(p.dataDir); found.alive() {
		p.process = found.process
		if err := p.Stop(ctx); err != nil {
			return err
		}
	}
	if err := writePrivate(filepath.Join(p.dataDir, "pg_hba.conf"), hba, p.user); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.binDir, "postgres"), "--single", "-D", p.dataDir, "postgres")
	cmd.Dir, cmd.Env, cmd.SysProcAttr = p.dataDir, environment(), p.user.sysProcAttr()
	cmd.Stdin = strings.NewReader("ALTER ROLE postgres PASSWORD '" + p.password + "'\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set the password of PostgreSQL in %s: %w: %s", p.opts.DataDir, err, out)
	}
	return nil
}

// adoptOrStart makes sure that p runs, whatever state the data folder is in.
func (p *Postgres) adoptOrStart(ctx context.Context) error {
	if left := readPostmaster(p.dataDir); left.alive() {
		p.process, p.port = left.process, left.port
		if (p.opts.Adopt || left.sameOptions(p)) && p.engine().ready(ctx, p.process) == nil {
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
	// Another program may take the free port before the server does, and children
	// of a killed postmaster may still run: both are transient.
	for began := time.Now(); ; {
		err := p.launch(ctx)
		if !errors.Is(err, errTransientStart) || ctx.Err() != nil || time.Since(began) > transientTimeout {
			return err
		}
	}
}

// errTransientStart marks a failed launch that may succeed when repeated.
var errTransientStart = errors.New("transient")

func (p *Postgres) launch(ctx context.Context) error {
	p.port = p.opts.Port
	if p.port == 0 {
		port, err := FreePort()
		if err != nil {
			return err
		}
		p.port = port
	}
	cmd := exec.Command(filepath.Join(p.binDir, "postgres"), p.arguments(p.port)...) //nolint:noctx // it outlives ctx
	cmd.Dir, cmd.Env, cmd.SysProcAttr = p.dataDir, environment(), p.user.sysProcAttr()
	started, err := p.engine().start(ctx, cmd)
	if started != nil {
		p.process = started
	}
	return err
}

func (p *Postgres) engine() server {
	return server{name: postgresName, logFile: p.opts.LogFile, explain: explainPostgres, ping: func(ctx context.Context) error {
		conn, err := pgconn.Connect(ctx, p.URL("postgres"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}}
}

// explainPostgres returns the error in the log of a server that ended at once.
func explainPostgres(log, logFile string) error {
	switch {
	case strings.Contains(log, "is still in use"), strings.Contains(log, "could not create any TCP/IP sockets"),
		strings.Contains(log, "already exists"):
		time.Sleep(200 * time.Millisecond) //nolint:forbidigo // no event announces the end of the children of a killed server
		return fmt.Errorf("PostgreSQL does not start (%w): %s", errTransientStart, log)
	case strings.Contains(log, "No space left on device"):
		return errors.New("PostgreSQL does not start, the disk is full: free some space and try again")
	default:
		return fmt.Errorf("PostgreSQL does not start; its log %s says: %s", logFile, log)
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

// postmaster is the content of postmaster.pid and postmaster.opts of a data folder.
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
	// After a reboot the id may belong to another process.
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

// remove deletes the pid file of a server that has ended: PostgreSQL refuses to
// start if another process of its user has that id now.
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
	password, _ := Password(dataDir) // without it, connecting fails with PostgreSQL's own words
	opts := PostgresOptions{Version: strings.TrimSpace(string(version)), DataDir: dataDir}
	return &Postgres{opts: opts, dataDir: real, port: found.port, process: found.process, password: password}
}
