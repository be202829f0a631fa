package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/sentrytest"
	"diehard/shared/failure"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
)

// start turns Sentry on for a test. Sentry belongs to the whole process, so
// these tests do not run in parallel.
func start(t *testing.T, rate float64) (server *sentrytest.Server, flush func()) {
	t.Helper()
	server = sentrytest.New(t)
	cfg := telemetry.SentryConfig{DSN: server.DSN, Environment: "Test", TracesSampleRate: rate}
	end, err := telemetry.InitSentry(cfg, "streamer")
	require.NoError(t, err)
	return server, func() { end(5 * time.Second) }
}

func TestReportGroupsByKindAndClass(t *testing.T) {
	server, flush := start(t, 1)
	telemetry.Report(t.Context(), "clickhouse", errors.New("dial tcp: connection refused"))
	telemetry.Report(t.Context(), "schema", failure.Wrap(failure.Fatal, errors.New("no such column")))
	telemetry.Report(t.Context(), "shutdown", fmt.Errorf("read: %w", context.Canceled))
	telemetry.Report(t.Context(), "nothing", nil)
	flush()

	events := server.Items("event")
	require.Len(t, events, 2)
	assert.Equal(t, []any{"clickhouse", "transient"}, events[0]["fingerprint"])
	assert.Equal(t, "warning", events[0]["level"])
	assert.Equal(t, "Test", events[0]["environment"])
	assert.Equal(t, map[string]any{"program": "streamer", "kind": "clickhouse", "class": "transient"}, events[0]["tags"])
	exception := events[0]["exception"].([]any)[0].(map[string]any)
	assert.Equal(t, "clickhouse: transient", exception["type"])
	assert.Equal(t, "dial tcp: connection refused", exception["value"])
	assert.Equal(t, []any{"schema", "fatal"}, events[1]["fingerprint"])
	assert.Equal(t, "fatal", events[1]["level"])
}

func TestOutageIsOneReportAndItsEnd(t *testing.T) {
	server, flush := start(t, 1)
	outage := telemetry.NewOutage("clickhouse")
	outage.Recovered(t.Context())
	for range 100 {
		outage.Failed(t.Context(), errors.New("connection refused"))
	}
	given, cancel := context.WithCancel(t.Context())
	cancel()
	outage.Failed(given, errors.New("gave up"))
	outage.Recovered(t.Context())
	outage.Recovered(t.Context())
	flush()

	events := server.Items("event")
	require.Len(t, events, 2)
	assert.Equal(t, events[0]["fingerprint"], events[1]["fingerprint"], "the end belongs to the same issue")
	assert.Regexp(t, `^clickhouse recovered after `, events[1]["message"])
	assert.Equal(t, "info", events[1]["level"])
	assert.InDelta(t, 100, events[1]["contexts"].(map[string]any)["outage"].(map[string]any)["failed_attempts"], 0)
}

func TestOutageReportsAChangeOfClass(t *testing.T) {
	server, flush := start(t, 1)
	outage := telemetry.NewOutage("clickhouse")
	outage.Failed(t.Context(), errors.New("connection refused"))
	outage.Failed(t.Context(), failure.Wrap(failure.Fatal, errors.New("table is gone")))
	flush()
	assert.Len(t, server.Items("event"), 2)
}

func TestFlushIsATransactionThatTheProducersTraceShows(t *testing.T) {
	server, flush := start(t, 0.0001) // flushes are traced at any rate above 0
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	f := telemetry.StartFlush(t.Context(), "process_outbox_events", []string{
		"", "00-" + traceID + "-" + spanID + "-01", "00-" + traceID + "-" + spanID + "-01",
		"00-11111111111111111111111111111111-2222222222222222-00", "nonsense-01",
	})
	f.Finish(telemetry.FlushData{
		Rows: 1000, Bytes: 123456, QueueRows: 5, Retries: 2, FirstLSN: "0/16B3748", LastLSN: "0/16B3799",
	}, nil)
	flush()

	transactions := byName(server.Items("transaction"))
	require.Len(t, transactions["process_outbox_events"], 1)
	require.Len(t, transactions["deliver_event"], 1)
	own := trace(transactions["process_outbox_events"][0])
	followed := trace(transactions["deliver_event"][0])
	assert.Equal(t, "ok", own["status"])
	assert.Equal(t, "queue.process", own["op"])
	data := own["data"].(map[string]any)
	assert.GreaterOrEqual(t, data["duration_ms"], 0.0)
	delete(data, "duration_ms")
	assert.Equal(t, map[string]any{
		"batch_size": 1000.0, "batch_bytes": 123456.0, "queue_size": 5.0, "retries": 2.0,
		"first_lsn": "0/16B3748", "last_lsn": "0/16B3799",
	}, data)
	assert.NotEqual(t, traceID, own["trace_id"])
	assert.Equal(t, traceID, followed["trace_id"])
	assert.Equal(t, spanID, followed["parent_span_id"])
	assert.Equal(t, own["trace_id"], followed["data"].(map[string]any)["flush.trace_id"])
	assert.Equal(t, own["span_id"], followed["data"].(map[string]any)["flush.span_id"])
}

func TestFailedFlushSaysSoWithoutTheError(t *testing.T) {
	server, flush := start(t, 1)
	f := telemetry.StartFlush(t.Context(), "process_outbox_events", nil)
	f.Finish(telemetry.FlushData{Rows: 1}, errors.New("payload of a row"))
	flush()
	transactions := server.Items("transaction")
	require.Len(t, transactions, 1)
	assert.Equal(t, "internal_error", trace(transactions[0])["status"])
	assert.NotContains(t, server.Raw(), "payload of a row")
}

func TestFlushFollowsABoundedNumberOfTraces(t *testing.T) {
	server, flush := start(t, 1)
	var traceparents []string
	for i := range 100 {
		traceparents = append(traceparents, fmt.Sprintf("00-%032x-%016x-01", i+1, i+1))
	}
	telemetry.StartFlush(t.Context(), "process_outbox_events", traceparents).Finish(telemetry.FlushData{}, nil)
	flush()
	assert.Len(t, server.Items("transaction"), 17)
}

func TestWithoutDSNNothingIsSent(t *testing.T) {
	server := sentrytest.New(t)
	flush, err := telemetry.InitSentry(telemetry.SentryConfig{TracesSampleRate: 1}, "streamer")
	require.NoError(t, err)
	assert.False(t, telemetry.Tracing(t.Context()))
	f := telemetry.StartFlush(t.Context(), "process_outbox_events", nil)
	assert.Nil(t, f)
	f.Finish(telemetry.FlushData{}, nil)
	telemetry.Report(t.Context(), "clickhouse", errors.New("refused"))
	flush(time.Second)
	assert.Empty(t, server.Raw())
}

func TestRateZeroSendsErrorsOnly(t *testing.T) {
	server, flush := start(t, 0)
	assert.Nil(t, telemetry.StartFlush(t.Context(), "process_outbox_events", nil))
	telemetry.Report(t.Context(), "clickhouse", errors.New("refused"))
	flush()
	assert.Len(t, server.Items("event"), 1)
	assert.Empty(t, server.Items("transaction"))
}

func TestSecretsStayHere(t *testing.T) {
	server, flush := start(t, 1)
	telemetry.Report(t.Context(), "insert", fmt.Errorf("connect postgres://app:hunter2@db/x?password=hunter3: "+
		`Cannot parse {"email":"ann@example.com","ssn":"123-45"} of bob@example.org: %s`, strings.Repeat("long ", 1000)))
	flush()
	require.Len(t, server.Items("event"), 1)
	for _, secret := range []string{"hunter2", "hunter3", "ann@", "123-45", "bob@"} {
		assert.NotContains(t, server.Raw(), secret)
	}
	assert.Less(t, len(server.Raw()), 4000)
}

func TestBadDSNIsNotPrinted(t *testing.T) {
	_, err := telemetry.InitSentry(telemetry.SentryConfig{DSN: "https://s3cret@/ bad"}, "api")
	require.ErrorContains(t, err, "SENTRY_CONFIG_DSN is not the address of a Sentry project")
	assert.NotContains(t, err.Error(), "s3cret")
	assert.Equal(t, failure.Fatal, failure.Of(err))
}

func TestSentryConfigFromTheEnvironment(t *testing.T) {
	cfg, err := settings.ParseFrom[telemetry.SentryConfig]("api", map[string]string{"ENVIRONMENT": "Staging"})
	require.NoError(t, err)
	assert.Equal(t, telemetry.SentryConfig{Environment: "Staging", TracesSampleRate: 1}, cfg)

	_, err = settings.ParseFrom[telemetry.SentryConfig]("api", map[string]string{"SENTRY_CONFIG_TRACES_SAMPLE_RATE": "1.5"})
	require.ErrorContains(t, err, "is more than 1")
}

func byName(transactions []map[string]any) map[string][]map[string]any {
	named := map[string][]map[string]any{}
	for _, transaction := range transactions {
		name := transaction["transaction"].(string)
		named[name] = append(named[name], transaction)
	}
	return named
}

func trace(event map[string]any) map[string]any {
	return event["contexts"].(map[string]any)["trace"].(map[string]any)
}
