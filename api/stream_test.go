package main_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// peakMemory is the most memory that the api ever had, in bytes.
func (p *program) peakMemory(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if os.IsNotExist(err) {
		t.Skip("there is no /proc")
	}
	require.NoError(t, err)
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, found)
	kib, err := strconv.Atoi(string(found[1]))
	require.NoError(t, err)
	return kib << 10
}

// cpuTime is what the program has used so far.
func (p *program) cpuTime(t *testing.T) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	if os.IsNotExist(err) {
		t.Skip("there is no /proc")
	}
	require.NoError(t, err)
	_, fields, _ := strings.Cut(string(stat), ") ") // behind the name
	user, err := strconv.Atoi(strings.Fields(fields)[11])
	require.NoError(t, err)
	system, err := strconv.Atoi(strings.Fields(fields)[12])
	require.NoError(t, err)
	const tick = time.Second / 100 // USER_HZ
	return time.Duration(user+system) * tick
}

// A body is stored while it arrives: it never is in memory as a whole.
func TestAStreamNeedsLittleMemory(t *testing.T) {
	t.Parallel()
	const lines, lineBytes = 800, 256 << 10 // 200 MiB
	env := testenv.New(t)
	p := start(t, env, "API_STREAM_TIMEOUT=10m")
	require.Equal(t, http.StatusCreated, <-p.createUser(t))
	before := p.peakMemory(t)

	line := `{"event_type":"t","event_context":"` + strings.Repeat("x", lineBytes) + "\"}\n"
	readers := make([]io.Reader, lines)
	for i := range readers {
		readers[i] = strings.NewReader(line)
	}
	code, answer := p.send(t, "POST", "/events", io.MultiReader(readers...), "Content-Type", "application/x-ndjson")
	require.Equal(t, http.StatusAccepted, code, "%.500s", answer)
	assert.Equal(t, [2]int{1, lines + 1}, rows(t, env))
	grown := p.peakMemory(t) - before
	t.Logf("%d MiB more for a body of %d MiB", grown>>20, lines*lineBytes>>20)
	assert.Less(t, grown, lines*lineBytes/2)
}
