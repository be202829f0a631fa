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

	"diehard/shared/embedded"
)

// A transaction far larger than memory should be lands in batches: the process's
// peak is that of its batches. proto_version 1 has the server keep it.
func TestF06_ALargeTransactionIsHeldInMemory(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	p := runPath(t, env, plainStreamer(t), nil, "CLICKHOUSE_BATCH_SIZE=50000") // the default
	p.says("streaming")
	execute(t, env, `INSERT INTO outbox (event_type, event_context)
		SELECT 'large', json_build_object('n', n, 'text', repeat(md5(n::text), 10)) FROM generate_series(1, 300000) AS n`)
	const rows = 300_000
	landedRows(t, env, rows)
	if runtime.GOOS == "linux" {
		peak := peakMemory(t, p.cmd.Process.Pid)
		t.Logf("peak of %d MiB for %d rows", peak>>20, rows)
		assert.Less(t, peak, 128<<20)
	}
	assert.Equal(t, rows, count(t, env, "uniqExact(event_id)", ""))
	assert.Equal(t, 1, count(t, env, "uniqExact(commit_lsn)", ""))
	assert.Equal(t, rows, count(t, env, "max(commit_seq)", ""))
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
