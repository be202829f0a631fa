package telemetry

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestColours(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newConsoleHandler(&out, slog.LevelDebug, true))
	log.Error("stopped", "err", errors.New("x"))
	assert.Contains(t, out.String(), red+"ERR"+plain+" stopped "+dim+"err="+plain+red+"x"+plain+"\n")
}

func TestNoOneWritesToTheTerminalThroughAnAttribute(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newConsoleHandler(&out, slog.LevelInfo, false))
	log.Info("a\x1b[2Jb", "key", "\x1b[31m\nINF forged")
	assert.NotContains(t, out.String(), "\x1b")
	assert.Equal(t, 1, bytes.Count(out.Bytes(), []byte("\n")))
}

func TestRoundDuration(t *testing.T) {
	for given, want := range map[time.Duration]string{
		0:                                        "0s",
		999 * time.Nanosecond:                    "999ns",
		12345 * time.Nanosecond:                  "12.35µs",
		-1234567:                                 "-1.235ms",
		12345 * time.Millisecond:                 "12.35s",
		90*time.Minute + 123456*time.Microsecond: "1h30m0.1s",
	} {
		assert.Equal(t, want, roundDuration(given).String())
	}
}
