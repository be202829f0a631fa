package crash_test

import (
	"context"
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
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/postgres"
)

const database = "diehard"

// environment is what one run has for itself: engines, the network before them, a
// folder for their files, and the record of what was done and what went wrong.
type environment struct {
	t       *testing.T
	seed    uint64
	bad     int // events that ClickHouse refuses, per cent
	rate    int // events a second
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

	upheavals *upheavals

	mu      sync.Mutex
	done    map[string]int // faults by name
	kills   int
	trouble []string
	history *os.File
}

func newEnvironment(t *testing.T, seed uint64, bad, rate int) *environment {
	t.Helper()
	require.NoError(t, embedded.SweepPrivate())
	home, err := embedded.PrivateDir()
	require.NoError(t, err)
	w := &environment{t: t, seed: seed, bad: bad, rate: rate, home: home, program: build(t), done: map[string]int{}, upheavals: newUpheavals()}
	w.history, err = os.Create(filepath.Join(home, "history.log"))
	require.NoError(t, err)
	t.Cleanup(w.close)
	w.startEngines(t)
	var listeners []int // those of the streamers
	for _, c := range w.clickhouse.ReplicaConfigs("default")[1:] {
		listeners = append(listeners, int(c.Port))
	}
	w.network = newNetwork(t, w.postgres.Port(), listeners)
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
	settings["checkpoint_timeout"], settings["max_wal_size"] = "30s", "512MB"
	var err error
	w.postgres, err = embedded.StartPostgres(t.Context(), embedded.PostgresOptions{
		Version: embedded.PostgresVersion(), DataDir: embedded.PostgresDir(w.home, embedded.PostgresVersion()),
		Database: database, Settings: settings, Log: t.Logf,
	})
	require.NoError(t, err)
	w.clickhouse, err = embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{
		DataDir: embedded.ClickHouseDir(w.home), Replicas: streamerListeners, Log: t.Logf,
	})
	require.NoError(t, err)
	w.url = w.postgres.URL(database)
	w.clickhouseConfig = w.clickhouse.Config("default")
	cfg := w.clickhouseConfig
	require.NoError(t, migrations.Up(t.Context(), postgres.Config{URL: w.url}, migrations.Outbox("", ""), cfg, slog.New(slog.DiscardHandler)))
	w.ch, err = clickhouse.Open(t.Context(), cfg)
	require.NoError(t, err)
	w.prepareTables(t)
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
	if w.postgres != nil {
		if dir, err := w.postgresDir(); err == nil { // a failover may not have come
			require.NoError(w.t, os.RemoveAll(dir+"-copy"))
		}
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
