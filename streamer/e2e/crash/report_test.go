package crash_test

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is the table of a run.
func (w *environment) report(r result, c *producerGroup, f *streamers, o *observer, disturbed, took time.Duration) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	line := func(name string, value any) { fmt.Fprintf(&b, "| %-44s | %12v |\n", name, value) }
	line("seed", w.seed)
	fmt.Fprintf(&b, "|%s|%s:|\n", strings.Repeat("-", 46), strings.Repeat("-", 13))
	line("bad rows, per cent", w.bad)
	line("killed processes", w.kills)
	for _, fault := range slices.Sorted(maps.Keys(w.done)) {
		line("  "+fault, w.done[fault])
	}
	line("takeovers by the standby", f.takeovers)
	t := w.upheavals.total()
	line("failovers", t.failovers)
	line("  of them to a copy that was behind", t.behind)
	line("foreign readers", t.foreign)
	line("refusals by a streamer", t.refusals)
	line("repairs by the operator", t.repairs)
	line("  events filled by their replays", t.filled)
	line("events written, those rolled back included", c.events())
	line("events a second, outages included", int(float64(c.events())/c.took.Seconds()))
	for _, l := range r.lines() {
		line(l[0], l[1])
	}
	line("samples of confirmed_flush_lsn", len(o.samples))
	line("  ahead of what was durable", r.early)
	line("time of the faults", disturbed.Round(time.Second))
	line("time in all", took.Round(time.Second))
	line("processors", runtime.NumCPU())
	line("race detector", map[bool]string{true: "on", false: "off"}[raced()])
	return b.String()
}
