package sim_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// trace remembers what happened last.
type trace struct {
	mu    sync.Mutex
	began time.Time
	lines []string
	limit int
}

func newTrace(limit int) *trace { return &trace{began: time.Now(), limit: limit} }

func (t *trace) add(format string, args ...any) {
	line := fmt.Sprintf("%12.6f ", time.Since(t.began).Seconds()) + fmt.Sprintf(format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, line)
	if len(t.lines) > 2*t.limit {
		t.lines = append(t.lines[:0], t.lines[t.limit:]...)
	}
}

func (t *trace) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines[max(0, len(t.lines)-t.limit):], "\n")
}

// handler writes a streamer's log into the trace.
type handler struct {
	*trace
	name string
}

func (handler) Enabled(context.Context, slog.Level) bool { return true }
func (h handler) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h handler) WithGroup(string) slog.Handler          { return h }
func (h handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	h.add("%s: %s%s", h.name, r.Message, b.String())
	return nil
}
