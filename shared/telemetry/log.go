// Package telemetry is logging, Sentry and Prometheus for both programs.
//
// Event payloads and secrets must not reach it; [Redact] covers what error texts
// of libraries and databases may quote.
package telemetry

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/lmittmann/tint"
	"github.com/mattn/go-isatty"
)

// LogConfig says what is logged and how.
type LogConfig struct {
	Level     slog.Level `env:"LOG_LEVEL" envDefault:"info" doc:"minimum log level: debug, info, warn or error"`
	Formatter string     `env:"LOG_FORMATTER" envDefault:"console" oneof:"console json" doc:"format of log lines: console for people, json for machines"`
}

// NewLogger returns a logger that writes to w, with attrs on every line: JSON with
// the keys time, level, msg and error, or short lines for people, which are
// coloured if w is a terminal and NO_COLOR is not set. Durations have units.
func NewLogger(cfg LogConfig, w io.Writer, attrs ...slog.Attr) *slog.Logger {
	var handler slog.Handler
	if cfg.Formatter == "json" {
		handler = slog.NewJSONHandler(w, &slog.HandlerOptions{Level: cfg.Level, ReplaceAttr: readable})
	} else {
		handler = tint.NewTextHandler(w, &tint.Options{
			Level: cfg.Level, TimeFormat: "15:04:05.000", NoColor: !isTerminal(w), ReplaceAttr: forConsole,
		})
	}
	return slog.New(handler.WithAttrs(attrs))
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && isatty.IsTerminal(file.Fd())
}

// readable rounds durations and gives them a unit.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(roundDuration(a.Value.Duration()).String())
	}
	return a
}

const red = 9 // ANSI's bright red

// forConsole keeps every record on one line, and escape sequences away from the
// terminal.
func forConsole(groups []string, a slog.Attr) slog.Attr {
	a = readable(groups, a)
	if err, ok := a.Value.Any().(error); ok && err != nil {
		return tint.Attr(red, slog.String(a.Key, printable(err.Error())))
	}
	if a.Value.Kind() == slog.KindString {
		a.Value = slog.StringValue(printable(a.Value.String()))
	}
	return a
}

// printable replaces control characters by spaces.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// roundDuration keeps about four digits.
func roundDuration(d time.Duration) time.Duration {
	for unit := 100 * time.Second; unit > time.Microsecond; unit /= 10 {
		if d >= unit || d <= -unit {
			return d.Round(unit / 1000)
		}
	}
	return d
}
