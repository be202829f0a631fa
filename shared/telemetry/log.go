// Package telemetry is how the programs speak: logs, Sentry and Prometheus.
//
// Event payloads and secrets never pass through here; see [Scrub] for what is
// done about error texts of others.
package telemetry

import (
	"io"
	"log/slog"
	"os"

	"github.com/mattn/go-isatty"
)

// LogConfig says what is logged and how.
type LogConfig struct {
	Level     slog.Level `env:"LOG_LEVEL" envDefault:"info" doc:"least level that is logged: debug, info, warn or error"`
	Formatter string     `env:"LOG_FORMATTER" envDefault:"console" oneof:"console json" doc:"log lines for people or for machines"`
}

// NewLogger returns a logger that writes to w, with attrs on every line. Lines
// for people are coloured if w is a terminal and NO_COLOR is not set.
func NewLogger(cfg LogConfig, w io.Writer, attrs ...slog.Attr) *slog.Logger {
	var handler slog.Handler
	if cfg.Formatter == "json" {
		handler = slog.NewJSONHandler(w, &slog.HandlerOptions{Level: cfg.Level})
	} else {
		handler = newConsoleHandler(w, cfg.Level, isTerminal(w))
	}
	return slog.New(handler.WithAttrs(attrs))
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && isatty.IsTerminal(file.Fd())
}
