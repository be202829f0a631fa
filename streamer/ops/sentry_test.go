package ops_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/sentrytest"
	"diehard/shared/dev/testenv"
	"diehard/shared/telemetry"
)

// Sentry belongs to the whole process: this test does not run in parallel, and
// begins before those that do.
func TestFlushesAndOutagesReachSentry(t *testing.T) {
	server := sentrytest.New(t)
	flush, err := telemetry.InitSentry(telemetry.SentryConfig{DSN: server.DSN, Environment: "Test", TracesSampleRate: 1}, "streamer")
	require.NoError(t, err)
	env := testenv.New(t)
	w := watch(t, env)
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")

	const traceID = "0af7651916cd43dd8448eb211c80319c"
	_, err = env.Pool.Exec(t.Context(), `INSERT INTO outbox (event_type, event_context, trace_context)
		VALUES ('secret_bought', '{"card":"4111-payload"}', '00-`+traceID+`-b7ad6b7169203331-01')`)
	require.NoError(t, err)
	written := func(rows int64) func() bool {
		return func() bool { return w.status().Totals.Flushed == rows }
	}
	await.True(t, written(1), "the row is never written")

	restore := refuseInserts(t, env)
	publish(t, env, 1)
	await.True(t, func() bool { return w.metrics().value("retries_total", "transient") >= 2 }, "nothing is retried")
	restore()
	await.True(t, written(3), "the outage never ends")
	w.stop()
	flush(5 * time.Second)

	var statuses []any
	var data map[string]any
	followed := false
	for _, transaction := range byEnd(server.Items("transaction")) {
		trace := transaction["contexts"].(map[string]any)["trace"].(map[string]any)
		switch transaction["transaction"] {
		case "process_outbox_events":
			statuses = append(statuses, trace["status"])
			data = trace["data"].(map[string]any)
		case "deliver_event":
			followed = followed || trace["trace_id"] == traceID
		}
	}
	assert.Equal(t, []any{"ok", "ok", "internal_error", "ok"}, statuses, "the flush that failed first is seen twice")
	assert.True(t, followed, "the producer's trace shows the flush")
	assert.InDelta(t, 1, data["batch_size"], 0)
	assert.GreaterOrEqual(t, data["retries"], 2.0)
	for _, field := range []string{"batch_bytes", "duration_ms", "queue_size", "first_lsn", "last_lsn"} {
		assert.Contains(t, data, field)
	}

	events := server.Items("event")
	require.Len(t, events, 2, "one report for the outage, one for its end")
	assert.Equal(t, []any{"clickhouse", "transient"}, events[0]["fingerprint"])
	assert.Regexp(t, "^clickhouse recovered after ", events[1]["message"])
	assert.NotContains(t, server.Raw(), "payload")
}

// byEnd sorts transactions, which arrive in any order, by the time they ended.
func byEnd(transactions []map[string]any) []map[string]any {
	slices.SortFunc(transactions, func(a, b map[string]any) int {
		return strings.Compare(a["timestamp"].(string), b["timestamp"].(string))
	})
	return transactions
}
