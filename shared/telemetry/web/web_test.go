package web_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"diehard/shared/dev/sentrytest"
	"diehard/shared/telemetry"
	"diehard/shared/telemetry/web"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
)

// server returns an echo server whose POST /users/:id answers with the
// request's traceparent, or fails with *fail.
func server(t *testing.T, fail *error) (*echo.Echo, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	e := echo.New()
	e.Logger.SetOutput(t.Output())
	e.Use(web.Trace("postgres"), web.Metrics(registry), middleware.Recover())
	e.POST("/users/:id", func(c echo.Context) error {
		if *fail != nil {
			return *fail
		}
		return c.String(http.StatusCreated, telemetry.Traceparent(c.Request().Context()))
	})
	e.GET("/panic", func(echo.Context) error { panic("bug with ann@example.com") })
	e.GET("/healthz", func(c echo.Context) error { return c.NoContent(http.StatusOK) })
	return e, registry
}

func sentryOn(t *testing.T) (*sentrytest.Server, func()) {
	t.Helper()
	received := sentrytest.New(t)
	flush, err := telemetry.InitSentry(telemetry.SentryConfig{DSN: received.DSN, TracesSampleRate: 1}, "api")
	require.NoError(t, err)
	return received, func() { flush(5 * time.Second) }
}

func call(e *echo.Echo, method, path string, header ...string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, path, strings.NewReader(`{"email":"ann@example.com"}`))
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response := httptest.NewRecorder()
	e.ServeHTTP(response, request)
	return response
}

func TestRequestIsATransactionInTheCallersTrace(t *testing.T) {
	for name, header := range map[string][]string{
		"traceparent":  {"traceparent", "00-" + traceID + "-" + spanID + "-01"},
		"sentry-trace": {"sentry-trace", traceID + "-" + spanID + "-1"},
	} {
		t.Run(name, func(t *testing.T) {
			received, flush := sentryOn(t)
			e, _ := server(t, new(error))
			answer := call(e, http.MethodPost, "/users/7?token=hunter2", append(header, "Authorization", "Bearer hunter3", "Cookie", "hunter4")...)
			flush()

			transactions := received.Items("transaction")
			require.Len(t, transactions, 1)
			got := transactions[0]["contexts"].(map[string]any)["trace"].(map[string]any)
			assert.Equal(t, "POST /users/:id", transactions[0]["transaction"])
			assert.Equal(t, traceID, got["trace_id"])
			assert.Equal(t, spanID, got["parent_span_id"])
			assert.Equal(t, "ok", got["status"])
			assert.Equal(t, map[string]any{
				"http.request.method": "POST", "http.route": "/users/:id", "http.response.status_code": 201.0,
			}, got["data"])
			assert.Equal(t, "00-"+traceID+"-"+got["span_id"].(string)+"-01", answer.Body.String())
			for _, secret := range []string{"hunter", "ann@example.com", "/users/7"} {
				assert.NotContains(t, received.Raw(), secret)
			}
		})
	}
}

// The outbox row carries the traceparent of its request to the flush.
func TestTheRequestAndTheFlushShareATrace(t *testing.T) {
	received, flush := sentryOn(t)
	e, _ := server(t, new(error))
	stored := call(e, http.MethodPost, "/users/7").Body.String()
	telemetry.StartFlush(t.Context(), "process_outbox_events", []string{stored}).Finish(telemetry.FlushData{Rows: 1}, nil)
	flush()

	traces := map[string]map[string]any{}
	for _, transaction := range received.Items("transaction") {
		traces[transaction["transaction"].(string)] = transaction["contexts"].(map[string]any)["trace"].(map[string]any)
	}
	require.Len(t, traces, 3)
	assert.Equal(t, traces["POST /users/:id"]["trace_id"], traces["deliver_event"]["trace_id"])
	assert.Equal(t, traces["POST /users/:id"]["span_id"], traces["deliver_event"]["parent_span_id"])
	assert.Equal(t, traces["process_outbox_events"]["trace_id"], traces["deliver_event"]["data"].(map[string]any)["flush.trace_id"])
}

func TestWithoutSentryTheCallersTraceIsPassedOn(t *testing.T) {
	e, _ := server(t, new(error))
	parent := "00-" + traceID + "-" + spanID + "-00"
	assert.Equal(t, parent, call(e, http.MethodPost, "/users/7", "traceparent", parent).Body.String())
	for _, invalid := range []string{
		"junk",
		"00-" + strings.Repeat("0", 32) + "-" + spanID + "-01",
		"00-" + traceID + "-" + strings.Repeat("0", 16) + "-01",
		"00-" + strings.ToUpper(traceID) + "-" + spanID + "-01",
		"00-" + traceID + "-" + spanID + "-01-more",
	} {
		assert.Empty(t, call(e, http.MethodPost, "/users/7", "traceparent", invalid).Body.String(), invalid)
	}
	assert.Empty(t, call(e, http.MethodPost, "/users/7").Body.String())
}

func TestDatabaseOutageIsOneIssue(t *testing.T) {
	received, flush := sentryOn(t)
	var fail error
	e, _ := server(t, &fail)
	fail = echo.NewHTTPError(http.StatusServiceUnavailable).SetInternal(errors.New("connection refused"))
	for range 20 {
		assert.Equal(t, http.StatusServiceUnavailable, call(e, http.MethodPost, "/users/7").Code)
	}
	fail = echo.NewHTTPError(http.StatusConflict)
	call(e, http.MethodPost, "/users/7")
	fail = nil
	call(e, http.MethodPost, "/users/7")
	flush()

	events := received.Items("event")
	require.Len(t, events, 2)
	assert.Equal(t, []any{"postgres", "transient"}, events[0]["fingerprint"])
	assert.Regexp(t, "postgres recovered after", events[1]["message"])
}

func TestPanicIsReportedWithItsRoute(t *testing.T) {
	received, flush := sentryOn(t)
	e, _ := server(t, new(error))
	assert.Equal(t, http.StatusInternalServerError, call(e, http.MethodGet, "/panic").Code)
	call(e, http.MethodGet, "/healthz")
	flush()

	events := received.Items("event")
	require.Len(t, events, 1)
	assert.Equal(t, "GET /panic", events[0]["tags"].(map[string]any)["kind"])
	assert.NotContains(t, received.Raw(), "ann@example.com")
	transactions := received.Items("transaction")
	require.Len(t, transactions, 1, "probes are not traced")
	assert.Equal(t, "internal_error", transactions[0]["contexts"].(map[string]any)["trace"].(map[string]any)["status"])
}

func TestMetricsByMethodRouteAndStatus(t *testing.T) {
	var fail error
	e, registry := server(t, &fail)
	call(e, http.MethodPost, "/users/1")
	call(e, http.MethodPost, "/users/2")
	fail = echo.NewHTTPError(http.StatusConflict)
	call(e, http.MethodPost, "/users/3")
	call(e, "BREW", "/users/3")
	call(e, http.MethodGet, "/nowhere")

	families, err := registry.Gather()
	require.NoError(t, err)
	require.Len(t, families, 1)
	assert.Equal(t, "http_request_duration_seconds", families[0].GetName())
	counts := map[string]uint64{}
	for _, metric := range families[0].GetMetric() {
		var labels []string
		for _, label := range metric.GetLabel() {
			labels = append(labels, label.GetValue())
		}
		counts[strings.Join(labels, " ")] = metric.GetHistogram().GetSampleCount()
	}
	assert.Equal(t, map[string]uint64{
		"POST /users/:id 201": 2, "POST /users/:id 409": 1, "other /users/:id 405": 1, "GET unmatched 404": 1,
	}, counts)
}
