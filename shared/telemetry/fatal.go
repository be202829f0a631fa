package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// PrintFatal writes the error that ends a program, also one that comes before its
// settings are read: a line of JSON if LOG_FORMATTER is json, else text for people.
// The name of the program in front of err is not repeated.
func PrintFatal(w io.Writer, program string, err error) {
	text := strings.TrimPrefix(err.Error(), program+": ")
	if os.Getenv("LOG_FORMATTER") == "json" {
		NewLogger(LogConfig{Formatter: "json"}, w, slog.String("program", program)).Error("program failed", "error", text)
		return
	}
	_, _ = fmt.Fprintf(w, "%s: %s\n", program, text)
}
