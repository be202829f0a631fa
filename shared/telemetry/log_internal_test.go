package telemetry

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/lmittmann/tint"
	"github.com/stretchr/testify/assert"
)

func TestErrorsAreRedInATerminal(t *testing.T) {
	var out bytes.Buffer
	slog.New(tint.NewTextHandler(&out, &tint.Options{ReplaceAttr: forConsole})).Error("stopped", "error", errors.New("x"))
	assert.Contains(t, out.String(), "\x1b[2;91merror=\x1b[22mx\x1b[0m\n")
}

func TestTheConsoleEscapesControlCharacters(t *testing.T) {
	for _, plain := range []bool{true, false} {
		var out bytes.Buffer
		log := slog.New(tint.NewTextHandler(&out, &tint.Options{NoColor: plain, ReplaceAttr: forConsole}))
		log.Info("a\x1b[2Jb", "key", "\x1b[5m\nINF forged", "error", errors.New("\x1b[5m\r\xff forged"), "end", "here")
		assert.NotContains(t, out.String(), "\x1b[2J")
		assert.NotContains(t, out.String(), "\x1b[5m")
		assert.Contains(t, out.String(), "here", "after bytes that are no UTF-8")
		assert.Equal(t, 1, bytes.Count(out.Bytes(), []byte("\n")))
	}
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
