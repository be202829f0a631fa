package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/telemetry"
)

func TestFatalErrorsFollowTheFormatter(t *testing.T) {
	failure := errors.New("api: 2 settings are wrong:\n  A is not set\n  B is not set")
	var out bytes.Buffer
	telemetry.PrintFatal(&out, "api", failure)
	assert.Equal(t, failure.Error()+"\n", out.String(), "the name is there once")

	t.Setenv("LOG_FORMATTER", "json")
	out.Reset()
	telemetry.PrintFatal(&out, "api", failure)
	var line struct {
		Time                       time.Time
		Level, Msg, Program, Error string
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &line), out.String())
	assert.WithinDuration(t, time.Now(), line.Time, time.Minute)
	assert.Equal(t, []string{"ERROR", "program failed", "api", "2 settings are wrong:\n  A is not set\n  B is not set"},
		[]string{line.Level, line.Msg, line.Program, line.Error})
}
