package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
)

// A transaction far larger than memory should be is written in batches: the process's
// peak is that of its batches. proto_version 1 has the server keep it.
func TestF06_ALargeTransactionIsHeldInMemory(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	p := runPath(t, env, plainStreamer(t), nil, "CLICKHOUSE_BATCH_SIZE=50000") // the default
	p.says("streaming")
	execute(t, env, `INSERT INTO outbox (event_type, event_context)
		SELECT 'large', json_build_object('n', n, 'text', repeat(md5(n::text), 10)) FROM generate_series(1, 300000) AS n`)
	const rows = 300_000
	awaitRows(t, env, rows)
	if runtime.GOOS == "linux" {
		peak := peakMemory(t, p.cmd.Process.Pid)
		t.Logf("peak of %d MiB for %d rows", peak>>20, rows)
		assert.Less(t, peak, 128<<20)
	}
	assert.Equal(t, rows, count(t, env, "uniqExact(event_id)", ""))
	assert.Equal(t, 1, count(t, env, "uniqExact(commit_lsn)", ""))
	assert.Equal(t, rows, count(t, env, "max(commit_seq)", ""))
}

// A row or message is as large as its writer likes, where no CHECK stands in the way. It is read
// through in pieces: of an event the beginning becomes a dead letter, and nothing else is kept.
func TestF06_AHugeRowOrMessageIsHeldInMemory(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	execute(t, env, `ALTER TABLE outbox DROP CONSTRAINT outbox_event, ADD COLUMN attachment text`)
	settings := []string{"CLICKHOUSE_BATCH_SIZE=50000", "REPLICATION_MESSAGES=true", "REPLICATION_SENDER_TIMEOUT=10s"}
	p := runPath(t, env, plainStreamer(t), nil, settings...)
	p.says("streaming")
	inOne(t, env, `SELECT pg_logical_emit_message(true, 'of another', repeat('x', 900 << 20))`, kind(row, "behind"))
	awaitRows(t, env, 1)
	const size = `16 << 20`
	inOne(t, env,
		`INSERT INTO outbox (event_type, event_context, attachment) VALUES ('attached', '{}', repeat('x', `+size+`))`,
		`INSERT INTO outbox (event_type, event_context) VALUES ('context', to_json(repeat('x', `+size+`)))`,
		`INSERT INTO outbox (event_type, event_context, trace_context) VALUES ('trace', '{}', repeat('x', `+size+`))`,
		`SELECT pg_logical_emit_message(true, 'diehard.event', '{"v":1}' || repeat('x', `+size+`))`,
		`SELECT pg_logical_emit_message(false, 'diehard.event', repeat('x', `+size+`))`,
		`SELECT pg_logical_emit_message(true, repeat('x', `+size+`), '')`,
		kind(message, "after"))
	awaitRows(t, env, 3)
	dead := deadLetters(t, env, 3)
	confirmedPast(t, env)
	if runtime.GOOS == "linux" {
		peak := peakMemory(t, p.cmd.Process.Pid)
		t.Logf("peak of %d MiB", peak>>20)
		assert.Less(t, peak, 128<<20)
	}
	assert.Equal(t, []string{"1 behind", "1 attached", "5 after"}, types(t, env))
	for i, want := range []string{"column event_context ends too far", "column trace_context ends too far", "message has no line of JSON"} {
		assert.EqualValues(t, i+2, dead[i].CommitSeq)
		assert.Contains(t, dead[i].Reason, want)
		assert.Less(t, len(dead[i].Raw), 2<<20)
	}
}

// peakMemory is the most that a process ever had in memory, in bytes. (The
// kernel's rusage would count this process, too, as the one it was forked from.)
func peakMemory(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		var kib int
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	require.Fail(t, "no VmHWM")
	return 0
}

// plainStreamer builds the streamer without the race detector, which takes many
// times the memory.
func plainStreamer(t testing.TB) string {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "streamer")
	require.NoError(t, embedded.Build(t.Context(), root, "./streamer", path))
	return path
}
