package telemetry_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"diehard/shared/telemetry"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func TestRedact(t *testing.T) {
	for text, want := range map[string]string{
		`relation "event_log" does not exist`:                   `relation "event_log" does not exist`,
		`dial postgres://u:p@h:5432/db failed`:                  `dial postgres://[hidden]@h:5432/db failed`,
		`user=app password=hunter2 host=h`:                      `user=app password=[hidden] host=h`,
		`"password": "two words", next`:                         `"password": [hidden], next`,
		`Authorization: Bearer abc.def`:                         `Authorization: [hidden]`,
		`Key (email)=(ann.b+c@mail.example.com) already exists`: `Key (email)=([email]) already exists`,
		"row {\"a\":\n{\"b\":1}} is bad":                        "row {…} is bad",
	} {
		assert.Equal(t, want, telemetry.Redact(text))
	}
	long := telemetry.Redact(strings.Repeat("ü", 1000))
	assert.LessOrEqual(t, len(long), 604)
	assert.True(t, strings.HasSuffix(long, "ü…"))
}

func TestMetricsNameTheBuild(t *testing.T) {
	response := httptest.NewRecorder()
	request := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	telemetry.MetricsHandler(telemetry.NewRegistry()).ServeHTTP(response, request)
	require.Equal(t, http.StatusOK, response.Code)
	body := response.Body.String()
	for _, metric := range []string{"diehard_build_info{", "go_goroutines ", "process_resident_memory_bytes "} {
		assert.Contains(t, body, metric)
	}
}
