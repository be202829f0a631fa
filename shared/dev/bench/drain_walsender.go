package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// walsender is the server process of a contestant, and what it has used so far.
type walsender struct {
	pid, clientPort    int
	started            time.Time // when it got START_REPLICATION
	segments, switches float64
	cpu                time.Duration
}

// walsenderPoll is the time between two looks; what the process uses after the last one is not
// seen. ss runs only in every fifth: it takes of the cores that are measured.
const (
	walsenderPoll   = 50 * time.Millisecond
	looksForSockets = 5
)

// watchWalsender watches the walsender of slot until the returned function is called, or the
// process ends. With half it runs half of the time only.
func (b *testbed) watchWalsender(ctx context.Context, slot string, half bool) (stop func() walsender) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan walsender, 1)
	go func() {
		w := walsender{segments: math.NaN(), switches: math.NaN()}
		for ctx.Err() == nil && !w.find(ctx, b, slot) {
			sleepFor(ctx, walsenderPoll)
		}
		if half && w.pid > 0 {
			halved := make(chan struct{})
			go func() { defer close(halved); runHalf(ctx, w.pid) }()
			defer func() { <-halved }()
		}
		for n := 1; w.look() && ctx.Err() == nil; n++ {
			if n%looksForSockets == 0 {
				w.lookForSegments(ctx)
			}
			sleepFor(ctx, walsenderPoll)
		}
		w.lookForSegments(context.WithoutCancel(ctx)) // if the client still runs
		cancel()
		done <- w
	}()
	return func() walsender { cancel(); return <-done }
}

func (w *walsender) find(ctx context.Context, b *testbed, slot string) bool {
	return b.pool.QueryRow(ctx, `SELECT a.pid, coalesce(a.client_port, 0), a.query_start FROM pg_replication_slots s
		JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = $1`, slot).Scan(&w.pid, &w.clientPort, &w.started) == nil
}

// look reports whether the process still runs.
func (w *walsender) look() bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid))
	if err != nil || w.pid == 0 {
		return false
	}
	w.cpu = cpuOf(w.pid, false)
	w.switches = 0
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); strings.HasSuffix(name, "ctxt_switches") {
			n, _ := strconv.ParseFloat(strings.TrimSpace(value), 64) // what is no number counts nothing
			w.switches += n
		}
	}
	return true
}

func (w *walsender) lookForSegments(ctx context.Context) {
	if n, ok := segmentsTo(ctx, w.clientPort); ok && w.clientPort > 0 {
		w.segments = n
	}
}

var segmentsIn = regexp.MustCompile(`data_segs_in:(\d+)`)

// segmentsTo asks ss (of iproute2) how many segments with data have come to a client. The server
// may be in a network namespace of its own.
func segmentsTo(ctx context.Context, port int) (float64, bool) {
	out, err := exec.CommandContext(ctx, "ss", "-tinH", "sport", "=", ":"+strconv.Itoa(port)).Output()
	if err != nil {
		return 0, false
	}
	found := segmentsIn.FindSubmatch(out)
	if found == nil {
		return 0, false
	}
	n, err := strconv.ParseFloat(string(found[1]), 64)
	return n, err == nil
}

// halfInterval is how long a walsender at half speed runs, and how long it stands.
const halfInterval = 2 * time.Millisecond

// runHalf stops a process and lets it continue in turn, until ctx ends.
func runHalf(ctx context.Context, pid int) {
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }() // it may have ended
	for ctx.Err() == nil {
		if syscall.Kill(pid, syscall.SIGSTOP) != nil {
			return
		}
		sleepFor(ctx, halfInterval)
		_ = syscall.Kill(pid, syscall.SIGCONT)
		sleepFor(ctx, halfInterval)
	}
}
