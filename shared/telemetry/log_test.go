package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/settings"
	"diehard/shared/telemetry"
)

func TestConsoleLine(t *testing.T) {
	var out bytes.Buffer
	cfg := telemetry.LogConfig{Level: slog.LevelInfo, Formatter: "console"}
	log := telemetry.NewLogger(cfg, &out, slog.String("program", "streamer"))
	log.Debug("not shown")
	log.WithGroup("sink").With("table", "event_log").Warn("insert failed\nretrying",
		"took", 12345678*time.Nanosecond, "error", errors.New("a b"), slog.Group("batch", "rows", 10), "empty", "")

	line := out.String()
	require.Regexp(t, `^\d\d:\d\d:\d\d\.\d{3} WRN `, line)
	assert.Equal(t, `WRN insert failed retrying program=streamer sink.table=event_log `+
		`sink.took=12.35ms sink.error="a b" sink.batch.rows=10 sink.empty=""`+"\n", line[len("15:04:05.000 "):])
}

func TestJSONLine(t *testing.T) {
	var out bytes.Buffer
	cfg := telemetry.LogConfig{Level: slog.LevelDebug, Formatter: "json"}
	telemetry.NewLogger(cfg, &out, slog.String("program", "api")).Debug("hello", "rows", 3, "took", 1500*time.Millisecond, slog.Group("batch", "age", time.Minute))

	var got map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &got))
	delete(got, "time")
	assert.Equal(t, map[string]any{
		"level": "DEBUG", "msg": "hello", "program": "api", "rows": 3.0,
		"took": "1.5s", "batch": map[string]any{"age": "1m0s"},
	}, got)
}

func TestConsoleHandlerKeepsSlogsContract(t *testing.T) {
	var out bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		out.Reset()
		return telemetry.NewLogger(telemetry.LogConfig{}, &out).Handler()
	}, func(t *testing.T) map[string]any {
		t.Helper()
		return parseConsole(t, out.String())
	})
}

// parseConsole turns "15:04:05.000 INF msg a.b=c" into nested maps.
func parseConsole(t *testing.T, line string) map[string]any {
	t.Helper()
	words := strings.Fields(line)
	got := map[string]any{}
	if strings.Count(words[0], ":") == 2 {
		got["time"], words = words[0], words[1:]
	}
	got["level"], got["msg"] = words[0], words[1]
	for _, word := range words[2:] {
		key, value, found := strings.Cut(word, "=")
		require.True(t, found, word)
		at := got
		path := strings.Split(key, ".")
		for _, group := range path[:len(path)-1] {
			if at[group] == nil {
				at[group] = map[string]any{}
			}
			at = at[group].(map[string]any)
		}
		at[path[len(path)-1]] = value
	}
	return got
}

func TestConsoleLinesOfManyGoroutinesStayWhole(t *testing.T) {
	reader, writer := io.Pipe()
	log := telemetry.NewLogger(telemetry.LogConfig{}, writer)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				log.With("a", 1).Info("line", "b", 2)
			}
		})
	}
	go func() {
		group.Wait()
		_ = writer.Close()
	}()
	all, err := io.ReadAll(reader)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
	assert.Len(t, lines, 400)
	for _, line := range lines {
		assert.True(t, strings.HasSuffix(line, "INF line a=1 b=2"), line)
	}
}

func TestNoColourOutsideATerminal(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	t.Cleanup(func() { _ = file.Close() })
	telemetry.NewLogger(telemetry.LogConfig{}, file).Info("hello")
	text, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	assert.NotContains(t, string(text), "\x1b")
	assert.Contains(t, string(text), "INF hello")
}

func TestLogConfigFromTheEnvironment(t *testing.T) {
	cfg, err := settings.ParseFrom[telemetry.LogConfig]("api", map[string]string{"LOG_LEVEL": "WARN"})
	require.NoError(t, err)
	assert.Equal(t, telemetry.LogConfig{Level: slog.LevelWarn, Formatter: "console"}, cfg)

	_, err = settings.ParseFrom[telemetry.LogConfig]("api", map[string]string{"LOG_LEVEL": "loud", "LOG_FORMATTER": "xml"})
	require.ErrorContains(t, err, `LOG_LEVEL = "loud" is not a valid value; expected: minimum log level`)
	require.ErrorContains(t, err, `LOG_FORMATTER = "xml" is not one of console, json`)
}
