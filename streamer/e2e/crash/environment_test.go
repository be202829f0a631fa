package crash_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

const (
	slot        = "outbox_streamer"
	database    = "diehard"
	eventLog    = "event_log"
	deadLetters = "crash_dead_letter"
	// refusedType is what ClickHouse refuses, by a constraint made here.
	refusedType = "crash_refused"
)

// environment is what one run has for itself: engines, the network before them, a
// folder for their files, and the record of what was done and what went wrong.
type environment struct {
	t       *testing.T
	seed    uint64
	home    string
	program string
	// The databases past the network.
	url              string
	clickhouseConfig clickhouse.Config

	network    *network
	ch         driver.Conn // past the network
	postgres   *embedded.Postgres
	clickhouse *embedded.ClickHouse
	// Held by who kills, freezes or starts the server.
	postgresBusy, clickhouseBusy sync.Mutex

	mu      sync.Mutex
	done    map[string]int // faults by name
	kills   int
	trouble []string
	history *os.File
}

func newEnvironment(t *testing.T, seed uint64) *environment {
	t.Helper()
	require.NoError(t, embedded.SweepPrivate())
	home, err := embedded.PrivateDir()
	require.NoError(t, err)
	w := &environment{t: t, seed: seed, home: home, program: build(t), done: map[string]int{}}
	w.history, err = os.Create(filepath.Join(home, "history.log"))
	require.NoError(t, err)
	t.Cleanup(w.close)
	w.startEngines(t)
	w.network = newNetwork(t, w.postgres.Port(), w.clickhouse.Port())
	return w
}

// build makes a streamer that knows failpoints, with the race detector if this
// test has it.
func build(t *testing.T) string {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	dir, err := embedded.TestDir()
	require.NoError(t, err)
	program, flags := filepath.Join(dir, "bin", "streamer-failpoints"), []string{"-tags", "failpoints"}
	if raced() {
		program, flags = program+"-race", append(flags, "-race")
	}
	require.NoError(t, embedded.Build(t.Context(), root, "./streamer", program, flags...))
	return program
}

// raced reports whether this test was built with the race detector.
func raced() bool {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}

func (w *environment) startEngines(t *testing.T) {
	t.Helper()
	settings := embedded.TestSettings()
	settings["logical_decoding_work_mem"] = "4MB" // large transactions take the way over the disk
	settings["checkpoint_timeout"] = "30s"
	var err error
	w.postgres, err = embedded.StartPostgres(t.Context(), embedded.PostgresOptions{
		Version: embedded.PostgresVersion(), DataDir: embedded.PostgresDir(w.home, embedded.PostgresVersion()),
		Database: database, Settings: settings, Log: t.Logf,
	})
	require.NoError(t, err)
	w.clickhouse, err = embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{
		DataDir: embedded.ClickHouseDir(w.home), Log: t.Logf,
	})
	require.NoError(t, err)
	w.url = w.postgres.URL(database)
	w.clickhouseConfig = w.clickhouse.Config("default")
	cfg := w.clickhouseConfig
	require.NoError(t, migrations.Up(t.Context(), postgres.Config{URL: w.url}, migrations.Outbox("", ""), cfg, slog.New(slog.DiscardHandler)))
	conn, err := pgx.Connect(t.Context(), w.url)
	require.NoError(t, err)
	// Without the constraint some rows can become dead letters.
	_, err = conn.Exec(t.Context(), "ALTER TABLE outbox DROP CONSTRAINT outbox_event; "+witnesses)
	require.NoError(t, errors.Join(err, conn.Close(t.Context())))
	w.ch, err = clickhouse.Open(t.Context(), cfg)
	require.NoError(t, err)
	for _, statement := range []string{
		"ALTER TABLE " + eventLog + " ADD CONSTRAINT crash CHECK event_type != '" + refusedType + "'",
		// The real table forgets duplicates when it merges; this one shows them.
		"CREATE TABLE " + deadLetters + " AS event_dead_letter ENGINE = MergeTree ORDER BY (source, commit_lsn, commit_seq) " +
			"SETTINGS non_replicated_deduplication_window = 1000",
		// Processes are killed and not the machine: neither server has to wait for the disk.
		"ALTER TABLE " + eventLog + " MODIFY SETTING fsync_after_insert = 0, fsync_part_directory = 0",
	} {
		require.NoError(t, w.ch.Exec(t.Context(), statement))
	}
}

// environ is the environment of the streamers, which live behind the network.
func (w *environment) environ() []string {
	cfg := w.clickhouseConfig
	cfg.Port, cfg.DeadLetterTable = w.network.clickhouse.port(), deadLetters
	return append(testenv.ClickHouseEnviron(cfg),
		"DATABASE_URL="+strings.Replace(w.url, fmt.Sprintf(":%d/", w.postgres.Port()), fmt.Sprintf(":%d/", w.network.postgres.port()), 1),
		"REPLICATION_SLOT="+slot, "REPLICATION_MESSAGES=true",
		"REPLICATION_SENDER_TIMEOUT="+senderTimeout.String(),
		"CLICKHOUSE_COMPRESSION=lz4", // as over a network
		"CLICKHOUSE_BATCH_SIZE=8000",
		"CLICKHOUSE_FLUSH_INTERVAL=100ms",
		"CLICKHOUSE_INSERT_TIMEOUT=5s",
		"SHUTDOWN_TIMEOUT=3s",
		"STREAMER_ADDR=127.0.0.1:0",
		"LOG_FORMATTER=json",
		"GORACE=halt_on_error=1",
		"PATH="+os.Getenv("PATH"),
	)
}

// did records a fault, and whether it killed a process.
func (w *environment) did(fault string, killed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done[fault]++
	if killed {
		w.kills++
	}
	fmt.Fprintf(w.history, "%s %s\n", time.Now().UTC().Format("15:04:05.000"), fault)
}

func (w *environment) killed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kills
}

// problem records what must not be. The run goes on to its end, where the test fails.
func (w *environment) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble = append(w.trouble, text)
	fmt.Fprintf(w.history, "%s PROBLEM %s\n", time.Now().UTC().Format("15:04:05.000"), text)
}

func (w *environment) problems() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.trouble...)
}

// repair starts and thaws what is down.
func (w *environment) repair(ctx context.Context) {
	w.network.heal()
	w.postgresBusy.Lock()
	defer w.postgresBusy.Unlock()
	w.clickhouseBusy.Lock()
	defer w.clickhouseBusy.Unlock()
	require.NoError(w.t, startAgain(ctx, w.postgres.Start))
	require.NoError(w.t, startAgain(ctx, w.clickhouse.Start))
}

// startAgain starts a server that was killed; the orphans of PostgreSQL may
// stand in its way for a moment.
func startAgain(ctx context.Context, start func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := start(ctx)
		if err == nil || !pause(ctx, 100*time.Millisecond) {
			return err
		}
	}
}

func (w *environment) keep(name, content string) {
	require.NoError(w.t, os.WriteFile(filepath.Join(w.home, name), []byte(content), 0o644))
}

// close ends the engines. After a failure everything they left is kept.
func (w *environment) close() {
	if w.network != nil {
		w.network.close()
	}
	if w.ch != nil {
		_ = w.ch.Close()
	}
	for _, engine := range embedded.FindEngines(w.home) {
		require.NoError(w.t, engine.Kill())
	}
	require.NoError(w.t, w.history.Close())
	if !w.t.Failed() {
		require.NoError(w.t, embedded.RemovePrivate(w.home))
		return
	}
	evidence, err := w.saveEvidence()
	w.t.Logf("seed %d failed; the evidence is in %s (%v)", w.seed, evidence, err)
}

// saveEvidence moves the folder of the run to where nothing is cleaned up.
func (w *environment) saveEvidence() (string, error) {
	dev, err := embedded.DevDir()
	if err != nil {
		return w.home, err
	}
	if err := os.MkdirAll(filepath.Join(dev, "crash"), 0o755); err != nil {
		return w.home, err
	}
	target := filepath.Join(dev, "crash", fmt.Sprintf("%s-seed-%d", time.Now().UTC().Format("20060102-150405"), w.seed))
	// PostgreSQL's folder may be a link to where its user can reach it.
	data := embedded.PostgresDir(w.home, embedded.PostgresVersion())
	if real, err := filepath.EvalSymlinks(data); err == nil && real != data {
		if err := os.Remove(data); err != nil {
			return w.home, err
		}
		if out, err := exec.Command("mv", real, data).CombinedOutput(); err != nil {
			return w.home, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	return target, os.Rename(w.home, target)
}
