package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/streamer/pipeline"
)

// runUntil runs a streamer that freezes when it is for the nth time at a failpoint.
func runUntil(t testing.TB, env *testenv.Env, failpoint string, n int, more ...string) *program {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	dir, err := embedded.TestDir()
	require.NoError(t, err)
	path := filepath.Join(dir, "bin", "streamer-failpoints-e2e")
	require.NoError(t, embedded.Build(t.Context(), root, "./streamer", path, "-tags", "failpoints"))
	return runPath(t, env, path, nil, append(more, fmt.Sprintf("DIEHARD_FAILPOINT=%s:%d:stop", failpoint, n))...)
}

// frozen waits until the program has stopped itself.
func (p *program) frozen() {
	p.t.Helper()
	await.True(p.t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		require.NoError(p.t, err)
		for i := len(stat) - 1; i > 0; i-- {
			if stat[i] == ')' { // the state follows the name
				return stat[i+2] == 'T'
			}
		}
		return false
	}, "it does not freeze: %s", p.log.text())
}

// A streamer is frozen with the intent written and the insert registered, and wakes up
// when its successor has sent the same block: ClickHouse drops one of the two. Nothing
// was killed, and no process list was read.
func TestAFrozenInsertAndItsRepetitionAreOne(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := runUntil(t, env, "intent-written", 1, "REPLICATION_SENDER_TIMEOUT=2s")
	first.says("streaming")
	publish(t, env, 10)
	first.frozen()
	second := start(t, env, func(c *setup) { c.SenderTimeout = 2 * time.Second })
	require.Equal(t, 10, delivered(t, env))
	first.signal(syscall.SIGCONT)
	first.says("standby: another streamer holds the slot")
	publish(t, env, 10)
	require.Equal(t, 20, delivered(t, env))
	second.stop()
	publish(t, env, 10)
	require.Equal(t, 30, delivered(t, env))
}

// The same, and the rows leave before the frozen streamer wakes up.
func TestAFrozenInsertDoesNotBringBackRowsThatLeft(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	first := runUntil(t, env, "intent-written", 1, "REPLICATION_SENDER_TIMEOUT=2s")
	first.says("streaming")
	publish(t, env, 10)
	first.frozen()
	start(t, env, func(c *setup) { c.SenderTimeout = 2 * time.Second })
	require.Equal(t, 10, delivered(t, env))
	command(t, env, "ALTER TABLE LOG DELETE WHERE commit_seq > 4 SETTINGS mutations_sync = 2")
	first.signal(syscall.SIGCONT)
	first.says("standby: another streamer holds the slot")
	publish(t, env, 5)
	awaitRows(t, env, 9)
}

// A view fails for an insert, and its rows leave before the streamer looks whether they are there. They
// do not come back as halves, nor as dead letters.
func TestRowsThatLeaveBehindAViewThatFails(t *testing.T) {
	t.Parallel()
	for name, events := range map[string]int{"several": 8, "one": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			command(t, env, "CREATE MATERIALIZED VIEW watcher ENGINE = MergeTree ORDER BY tuple() AS SELECT throwIf(commit_seq > 0) AS x FROM LOG")
			s := runUntil(t, env, "after-insert", 1)
			s.says("streaming")
			publish(t, env, events)
			s.frozen()
			awaitRows(t, env, events)
			command(t, env, "ALTER TABLE LOG DELETE WHERE 1 SETTINGS mutations_sync = 2")
			s.signal(syscall.SIGCONT)
			s.says("ClickHouse accepted a repeated insert, but its rows are missing")
			publish(t, env, 3)
			awaitRows(t, env, 3)
			confirmedPast(t, env)
			assert.Equal(t, 3, countRows(t, env))
			var dead uint64
			require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM "+env.ClickHouseConfig.DeadLetterTable).Scan(&dead))
			assert.Zero(t, dead)
		})
	}
}

// Whatever advances the slot beside the streamer takes events from it.
func TestAForeignReaderIsRefused(t *testing.T) {
	t.Parallel()
	for name, read := range map[string]func(t *testing.T, env *testenv.Env){
		"advanced by hand": func(t *testing.T, env *testenv.Env) {
			t.Helper()
			execute(t, env, "SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())", env.Slot)
		},
		"read by another tool": func(t *testing.T, env *testenv.Env) {
			t.Helper()
			execute(t, env, "SELECT pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', $2)", env.Slot, env.Publication)
		},
		"made anew": func(t *testing.T, env *testenv.Env) {
			t.Helper()
			execute(t, env, "SELECT pg_drop_replication_slot($1)", env.Slot)
			execute(t, env, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, before := range []int{0, 5} {
				env := newEnv(t)
				s := start(t, env)
				publish(t, env, before)
				delivered(t, env)
				s.stop()
				publish(t, env, 3)
				read(t, env)
				says(t, launch(t, env).refusal(), "advanced by something other", env.Slot, "streamer slot accept", "streamer replay --from-table")
				publish(t, env, 2)
				says(t, launch(t, env).refusal(), "advanced by something other")
				require.Equal(t, before, countRows(t, env))

				slotCommand(t, env, "accept")
				start(t, env)
				replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
				require.Zero(t, replay.exit(), replay.log.text())
				require.Contains(t, replay.log.text(), "3 were missing, 3 of them are filled now", "the slot has kept the other two")
				require.Equal(t, before+5, delivered(t, env))
			}
		})
	}
}

// A foreign reader at work holds the slot: a streamer stands by, and refuses then.
func TestAForeignReaderIsRefusedAfterStandingBy(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env).stop()
	reader := exec.Command("pg_recvlogical", "--dbname", env.PostgresURL, "--slot", env.Slot, "--start", "--file", "/dev/null",
		"--option", "proto_version=1", "--option", "publication_names="+env.Publication, "--status-interval", "1")
	if reader.Err != nil {
		t.Skip("pg_recvlogical is not installed")
	}
	require.NoError(t, reader.Start())
	t.Cleanup(func() { _ = reader.Process.Kill(); _ = reader.Wait() })
	await.True(t, func() bool {
		var active bool
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT active FROM pg_replication_slots WHERE slot_name = $1", env.Slot).Scan(&active))
		return active
	}, "it does not read")
	s := launch(t, env)
	s.await(pipeline.Standby)
	publish(t, env, 3)
	end := walEnd(t, env)
	await.True(t, func() bool { return slotLSN(t, env, "confirmed_flush_lsn") >= end }, "it does not confirm")
	require.NoError(t, reader.Process.Signal(syscall.SIGINT))
	says(t, s.refusal(), "advanced by something other")
	require.Zero(t, countRows(t, env))
}

// copyOf returns a copy of the server's data as of now.
func copyOf(t testing.TB, env *testenv.Env, engine *embedded.Postgres) (dir, copied string) {
	t.Helper()
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SHOW data_directory").Scan(&dir))
	require.NoError(t, engine.Stop(t.Context()))
	copied = dir + "-copy"
	out, err := exec.Command("cp", "-a", dir, copied).CombinedOutput()
	require.NoError(t, err, string(out))
	t.Cleanup(func() { _ = os.RemoveAll(copied) })
	require.NoError(t, engine.Start(t.Context()))
	env.Pool.Reset()
	return dir, copied
}

// failOver kills the server and promotes the copy in its place.
func failOver(t testing.TB, env *testenv.Env, engine *embedded.Postgres, dir, copied string) {
	t.Helper()
	require.NoError(t, engine.Kill())
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.Rename(copied, dir))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o644))
	require.NoError(t, engine.Start(t.Context()))
	env.Pool.Reset()
	execute(t, env, "SELECT pg_promote()")
}

// The primary dies while ClickHouse works on an insert; a standby without its events is
// promoted, and other events take their positions. The successor waits for the inserts of the
// old timeline; this one is written meanwhile, and then ClickHouse holds events that the
// server lacks.
func TestAFailoverThatLosesEventsWhoseInsertIsWrittenLate(t *testing.T) {
	t.Parallel()
	env, engine := ownPostgres(t, nil)
	s := delivering(t, env, 5)
	s.stop()
	dir, copied := copyOf(t, env, engine)
	first := run(t, env, "streamer", "REPLICATION_SENDER_TIMEOUT=2s")
	first.says("streaming")
	slow(t, env)
	publish(t, env, 5)
	await.True(t, func() bool { return running(t, env, 0.2) > 0 }, "ClickHouse is not asked")
	first.kill()
	failOver(t, env, engine, dir, copied)
	trickle(t, env, 50)
	second := launch(t, env, func(c *setup) { c.InsertTimeout = time.Second })
	says(t, second.refusal(), "of timeline 1", "lost in a failover")
	require.Equal(t, 10, countRows(t, env), "nothing of the new timeline is mixed with them")
}

// The same with an insert that was registered and is never sent: the successor goes on with what the
// new primary has, once the old insert is over.
func TestAFailoverThatLosesEventsThatWereNeverWritten(t *testing.T) {
	t.Parallel()
	env, engine := ownPostgres(t, nil)
	s := delivering(t, env, 5)
	s.stop()
	dir, copied := copyOf(t, env, engine)
	first := runUntil(t, env, "intent-written", 1, "REPLICATION_SENDER_TIMEOUT=2s")
	first.says("streaming")
	publish(t, env, 10)
	first.frozen()
	failOver(t, env, engine, dir, copied)
	trickle(t, env, 10)
	second := launch(t, env, func(c *setup) { c.InsertTimeout = time.Second })
	await.True(t, func() bool {
		return strings.Contains(second.log.text(), "waiting until earlier inserts have passed their time limit")
	}, "it does not wait")
	first.kill()
	second.await(pipeline.Streaming)
	require.Equal(t, 15, delivered(t, env))
	assert.Equal(t, 2, count(t, env, "max(timeline)", ""))
}
