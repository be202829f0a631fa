package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/postgres"
	"diehard/shared/settings"
)

// environment is what benchmarks run on: engines of their own, or those that the
// environment names. Every benchmark makes databases of its own.
type environment struct {
	dir      string
	streamer string // path of the binary under test
	api      string
	self     string

	postgres   *embedded.Postgres
	clickhouse *embedded.ClickHouse
	pgURL      func(database string) string
	chConfig   clickhouse.Config
	log        *slog.Logger
	options
}

// options of the program.
type options struct {
	Rounds  int     `env:"BENCH_ROUNDS" envDefault:"3" min:"1" doc:"rounds per contestant"`
	Scale   float64 `env:"BENCH_SCALE" envDefault:"1" doc:"factor on the number of rows"`
	Profile string  `env:"BENCH_CPUPROFILE" doc:"file for a CPU profile of the streamer's last round; empty for none"`
	// Of the links of path.
	RTT      []time.Duration `env:"BENCH_RTT" envDefault:"0s,200us,500us,1ms,2ms,10ms,40ms" doc:"round trips of path's links"`
	MTU      []int           `env:"BENCH_MTU" envDefault:"1500,9000" doc:"MTUs of path's links"`
	TLS      []bool          `env:"BENCH_TLS" envDefault:"false,true" doc:"whether path's sessions have TLS"`
	Offload  []bool          `env:"BENCH_OFFLOAD" envDefault:"true,false" doc:"whether path's devices take segments of up to 64 KB, as most network cards do"`
	LogLevel string          `env:"BENCH_LOG_LEVEL" envDefault:"warn" doc:"log level of the contestants"`
}

func openEnvironment(ctx context.Context) (*environment, error) {
	o, err := settings.Parse[options]("bench")
	if err != nil {
		return nil, err
	}
	dev, err := embedded.DevDir()
	if err != nil {
		return nil, err
	}
	env := &environment{
		dir: filepath.Join(dev, "bench"), options: o,
		log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if env.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(env.dir, 0o755); err != nil { //nolint:gosec // engines run as other users
		return nil, err
	}
	if err := env.build(ctx); err != nil {
		return nil, err
	}
	return env, env.startEngines(ctx)
}

// build compiles the programs under test as users get them.
func (env *environment) build(ctx context.Context) error {
	root, err := embedded.Root()
	if err != nil {
		return err
	}
	for _, name := range []string{"streamer", "api"} {
		out := filepath.Join(env.dir, name)
		cmd := exec.CommandContext(ctx, "go", "build", "-o", out, "./"+name)
		cmd.Dir, cmd.Stderr = root, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
	}
	env.streamer, env.api = filepath.Join(env.dir, "streamer"), filepath.Join(env.dir, "api")
	return nil
}

func (env *environment) startEngines(ctx context.Context) error {
	var err error
	if url := os.Getenv("DATABASE_URL"); url != "" {
		env.pgURL = func(database string) string { return replaceDatabase(url, database) }
	} else {
		env.postgres, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{
			DataDir: filepath.Join(env.dir, "postgres-"+embedded.PostgresVersion()), Log: env.progress,
			Settings: postgresSettings(),
		})
		if err != nil {
			return err
		}
		env.pgURL = env.postgres.URL
	}
	if os.Getenv("CLICKHOUSE_HOST") != "" {
		env.chConfig, err = settings.Parse[clickhouse.Config]("bench")
		return err
	}
	env.clickhouse, err = embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{
		DataDir: filepath.Join(env.dir, "clickhouse"), Log: env.progress,
		Grants: "POSTGRES", // for MaterializedPostgreSQL
	})
	if err != nil {
		return err
	}
	env.chConfig = env.clickhouse.Config("default")
	return nil
}

func postgresSettings() map[string]string {
	return map[string]string{
		"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min",
		"max_connections": "200", "max_replication_slots": "50", "max_wal_senders": "50",
	}
}

func (env *environment) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

func (env *environment) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if env.clickhouse != nil {
		_ = env.clickhouse.Stop(ctx)
	}
	if env.postgres != nil {
		_ = env.postgres.Stop(ctx)
	}
}

// testbed is a migrated pair of databases.
type testbed struct {
	env    *environment
	name   string
	pool   *pgxpool.Pool
	ch     clickhouse.Conn
	config clickhouse.Config
	url    string
}

// newTestbed makes fresh databases and migrates them.
func (env *environment) newTestbed(ctx context.Context, name string) (*testbed, error) {
	admin, err := pgxpool.New(ctx, env.pgURL("postgres"))
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	b := &testbed{env: env, name: "bench_" + name, url: env.pgURL("bench_" + name), config: env.chConfig}
	if err := dropDatabase(ctx, admin, b.name); err != nil {
		return nil, err
	}
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+b.name); err != nil {
		return nil, err
	}
	b.config.Database = b.name
	if b.pool, err = pgxpool.New(ctx, b.url); err != nil {
		return nil, err
	}
	if err := migrations.Outbox("", "").Up(ctx, postgres.Config{URL: b.url}, env.log); err != nil {
		return nil, err
	}
	return b, b.freshClickHouse(ctx)
}

// freshClickHouse empties the ClickHouse side.
func (b *testbed) freshClickHouse(ctx context.Context) error {
	if b.ch != nil {
		_ = b.ch.Close()
	}
	root := b.config
	root.Database = "default"
	admin, err := clickhouse.Open(ctx, root)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	if err := admin.Exec(ctx, "DROP DATABASE IF EXISTS "+b.name+" SYNC"); err != nil {
		return err
	}
	if err := migrations.UpClickHouse(ctx, b.config, b.env.log); err != nil {
		return err
	}
	opts, err := clickhouse.Options(b.config)
	if err != nil {
		return err
	}
	b.ch, err = clickhouse.OpenOptions(opts)
	return err
}

func (b *testbed) close(ctx context.Context) error {
	b.pool.Close()
	_ = b.ch.Close()
	admin, err := pgxpool.New(ctx, b.env.pgURL("postgres"))
	if err != nil {
		return err
	}
	defer admin.Close()
	return dropDatabase(ctx, admin, b.name)
}

func dropDatabase(ctx context.Context, admin *pgxpool.Pool, name string) error {
	rows, err := admin.Query(ctx, `SELECT slot_name FROM pg_replication_slots WHERE database = $1`, name)
	if err != nil {
		return err
	}
	var slots []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return err
		}
		slots = append(slots, s)
	}
	for _, s := range slots {
		if _, err := admin.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, s); err != nil {
			return err
		}
	}
	_, err = admin.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
	return err
}

// environ configures a contestant.
func (b *testbed) environ(slot string, extra ...string) []string {
	return append(os.Environ(), append([]string{
		"DATABASE_URL=" + b.url,
		"CLICKHOUSE_HOST=" + b.config.Host, fmt.Sprintf("CLICKHOUSE_PORT=%d", b.config.Port),
		"CLICKHOUSE_USER=" + b.config.User, "CLICKHOUSE_PASSWORD=" + b.config.Password,
		"CLICKHOUSE_SCHEMA=" + b.config.Database,
		"REPLICATION_SLOT=" + slot, "STREAMER_ADDR=127.0.0.1:0", "LOG_LEVEL=" + cmp.Or(os.Getenv("LOG_LEVEL"), "warn"),
	}, extra...)...)
}
