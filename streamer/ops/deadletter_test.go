package ops_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/sentrytest"
	"diehard/shared/dev/testenv"
	"diehard/shared/telemetry"
	"diehard/streamer/deadletter"
	"diehard/streamer/sink"
)

// Not parallel: Sentry belongs to the whole process.
func TestDeadLettersAreSeenEverywhereWithoutTheirPayload(t *testing.T) {
	server := sentrytest.New(t)
	flush, err := telemetry.InitSentry(telemetry.SentryConfig{DSN: server.DSN, Environment: "Test"}, "streamer")
	require.NoError(t, err)
	env := testenv.New(t)
	w := watch(t, env)
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	require.NoError(t, env.ClickHouse.Exec(t.Context(), `ALTER TABLE event_log ADD CONSTRAINT no_cards CHECK position(event_context, '4111') = 0`))
	_, err = env.Pool.Exec(t.Context(), `INSERT INTO outbox (event_type, event_context)
		SELECT 'paid', CASE WHEN n IN (3, 7) THEN '["4111-payload"]' ELSE '{}' END::json FROM generate_series(1, 10) AS n`)
	require.NoError(t, err)

	await.True(t, func() bool {
		c := w.status().ClickHouse.ClickHouse
		return c != nil && c.DeadLetters.Open == 2
	}, "the dead letters are never shown")
	s, m := w.status(), w.metrics()
	assert.InDelta(t, 2, m.value("dead_letters_total"), 0)
	assert.InDelta(t, 2, m.value("dead_letters_open"), 0)
	assert.True(t, s.Ready, "the others go on: %v", s.Reasons)
	assert.Equal(t, "paid", s.ClickHouse.DeadLetters.Recent[0].Type)
	assert.Equal(t, "ClickHouse refused it with code 469 (VIOLATED_CONSTRAINT)", s.ClickHouse.DeadLetters.Recent[0].Reason)
	assert.Equal(t, "dead letter", s.Failures[0].Kind)
	assert.Equal(t, 1, s.Failures[0].Count)
	for _, f := range s.Failures {
		assert.NotContains(t, f.Text, "payload")
	}
	tables := sink.Tables{EventLog: env.ClickHouseConfig.EventLogTable, DeadLetter: env.ClickHouseConfig.DeadLetterTable}
	dropped, err := deadletter.Drop(t.Context(), env.PostgresURL, env.ClickHouse, tables, deadletter.Filter{})
	require.NoError(t, err)
	assert.Equal(t, 2, dropped)
	await.True(t, func() bool {
		c := w.status().ClickHouse.ClickHouse
		return c != nil && c.DeadLetters.Open == 0 && len(c.DeadLetters.Recent) == 0
	}, "dropped dead letters are open")
	assert.Zero(t, w.metrics().value("dead_letters_open"))
	w.stop()
	flush(5 * time.Second)

	var events []map[string]any
	for _, event := range server.Items("event") {
		if event["tags"].(map[string]any)["kind"] == "dead letter" { // the connection may have needed a second try
			events = append(events, event)
		}
	}
	require.Len(t, events, 1, "one report for all rows of a flush")
	assert.Equal(t, []any{"dead letter", "poison"}, events[0]["fingerprint"])
	value := events[0]["exception"].([]any)[0].(map[string]any)["value"]
	assert.Regexp(t, `^2 rows written to the dead-letter table in one flush; the first: row [0-9A-F/]+/3 of type "paid" was refused by ClickHouse with code 469 \(VIOLATED_CONSTRAINT\)`, value)
	assert.NotContains(t, server.Raw(), "payload")
}

func TestAFailingViewIsSeen(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	w := watch(t, env)
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	require.NoError(t, env.ClickHouse.Exec(t.Context(), `CREATE MATERIALIZED VIEW watcher ENGINE = Null AS
		SELECT throwIf(position(event_context, '4111') > 0) AS x FROM event_log`))
	_, err := env.Pool.Exec(t.Context(), `INSERT INTO outbox (event_type, event_context) VALUES ('paid', '["4111-payload"]')`)
	require.NoError(t, err)
	await.True(t, func() bool {
		m := w.metrics()
		return m.value("view_failures_total") == 1 && m.value("rows_flushed_total") == 1
	}, "nothing reports the view's failure")
	s := w.status()
	assert.Equal(t, "materialized view", s.Failures[0].Kind)
	const says = "code 395 (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO)"
	assert.Equal(t, "materialized view "+env.ClickHouseConfig.Database+".watcher: "+says, s.Failures[0].Text)
	assert.True(t, s.Ready)
	require.Len(t, s.Degraded, 1)
	assert.Contains(t, s.Degraded[0], ".watcher: "+says)
	publish(t, env, 1)
	await.True(t, func() bool { return len(w.status().Degraded) == 0 }, "the next event does not show that the view works")
	assert.Zero(t, w.metrics().value("dead_letters_total"))
}
