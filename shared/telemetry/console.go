package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// consoleHandler writes a record as one short line:
//
//	14:05:06.789 INF batch stored rows=1000 took=12ms
type consoleHandler struct {
	mu     *sync.Mutex // guards w; shared by all handlers made from one
	w      io.Writer
	level  slog.Level
	color  bool
	fixed  []byte // attributes of WithAttrs, ready to print
	prefix string // open groups: "http."
}

func newConsoleHandler(w io.Writer, level slog.Level, color bool) *consoleHandler {
	return &consoleHandler{mu: &sync.Mutex{}, w: w, level: level, color: color}
}

// Enabled reports whether level is logged.
func (h *consoleHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level
}

// Handle writes the record with one call of Write.
func (h *consoleHandler) Handle(_ context.Context, r slog.Record) error {
	line := make([]byte, 0, 256)
	if !r.Time.IsZero() {
		line = h.paint(line, dim, r.Time.Format("15:04:05.000"))
		line = append(line, ' ')
	}
	name, color := levelStyle(r.Level)
	line = h.paint(line, color, name)
	line = append(line, ' ')
	line = append(line, oneLine(r.Message)...)
	line = append(line, h.fixed...)
	r.Attrs(func(a slog.Attr) bool {
		line = h.appendAttr(line, h.prefix, a)
		return true
	})
	line = append(line, '\n')

	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.w.Write(line); err != nil {
		return fmt.Errorf("write log line: %w", err)
	}
	return nil
}

// WithAttrs returns a handler that prints attrs on every line.
func (h *consoleHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.fixed = slices.Clip(h.fixed)
	for _, a := range attrs {
		next.fixed = h.appendAttr(next.fixed, h.prefix, a)
	}
	return &next
}

// WithGroup returns a handler that prints the keys to come as name.key.
func (h *consoleHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.prefix += name + "."
	return &next
}

func (h *consoleHandler) appendAttr(line []byte, prefix string, a slog.Attr) []byte {
	value := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return line
	}
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range value.Group() {
			line = h.appendAttr(line, prefix, member)
		}
		return line
	}
	line = append(line, ' ')
	line = h.paint(line, dim, prefix+a.Key+"=")
	if _, failed := value.Any().(error); failed {
		return h.paint(line, red, valueText(value))
	}
	return append(line, valueText(value)...)
}

func valueText(v slog.Value) string {
	text := v.String()
	switch v.Kind() {
	case slog.KindDuration:
		text = roundDuration(v.Duration()).String()
	case slog.KindTime:
		text = v.Time().Format(time.RFC3339Nano)
	default:
	}
	if text == "" || strings.ContainsAny(text, " \t\r\n\"=\x1b") {
		return strconv.Quote(text)
	}
	return text
}

// roundDuration keeps about four digits: nobody reads 12.345678ms.
func roundDuration(d time.Duration) time.Duration {
	for unit := 100 * time.Second; unit > time.Microsecond; unit /= 10 {
		if d >= unit || d <= -unit {
			return d.Round(unit / 1000)
		}
	}
	return d
}

// oneLine keeps a message of several lines readable and on its own line.
func oneLine(message string) string {
	return strings.NewReplacer("\n", " ", "\r", " ", "\x1b", "").Replace(message)
}

const (
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	blue   = "\x1b[34m"
	plain  = "\x1b[0m"
)

func levelStyle(level slog.Level) (name, color string) {
	switch {
	case level >= slog.LevelError:
		return "ERR", red
	case level >= slog.LevelWarn:
		return "WRN", yellow
	case level >= slog.LevelInfo:
		return "INF", green
	default:
		return "DBG", blue
	}
}

func (h *consoleHandler) paint(line []byte, color, text string) []byte {
	if !h.color {
		return append(line, text...)
	}
	line = append(line, color...)
	line = append(line, text...)
	return append(line, plain...)
}
