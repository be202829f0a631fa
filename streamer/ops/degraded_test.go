package ops_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/ops"
	"diehard/streamer/pipeline"
)

// A view that refuses every insert is shown before there is an event, and until it is repaired.
func TestAViewWithoutItsTargetIsShown(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	exec := func(sql string) { require.NoError(t, env.ClickHouse.Exec(t.Context(), sql), sql) }
	const target = "CREATE TABLE target (event_id UUID) ENGINE = MergeTree ORDER BY event_id"
	exec(target)
	exec("CREATE MATERIALIZED VIEW watcher TO target AS SELECT event_id FROM event_log")
	exec("DROP TABLE target SYNC")
	w := watch(t, env)
	named := func() bool {
		code, r := w.ready()
		return code == http.StatusOK && r.Ready && len(r.Degraded) == 1
	}
	await.True(t, named, "the view is not shown while there are no events")
	publish(t, env, 3)
	await.True(t, func() bool { return w.metrics().value("rows_flushed_total") == 3 && named() }, "the events are not written without the view")
	s, m := w.status(), w.metrics()
	assert.Regexp(t, `^materialized view `+env.ClickHouseConfig.Database+`\.watcher: code: 60, message: .*: repair or drop the view`, s.Degraded[0])
	assert.Equal(t, "streaming", s.State)
	assert.Equal(t, "materialized view", s.Failures[0].Kind)
	assert.NotContains(t, s.Failures[0].Text, "migrate up", "the tables are as they must be")
	assert.Positive(t, m.value("view_failures_total"))
	assert.Zero(t, m.value("dead_letters_total"))
	assert.InDelta(t, 1, m.value("degraded", "view"), 0)
	assert.Zero(t, m.value("degraded", "dead_letters"))

	exec(target)
	await.True(t, func() bool { return len(w.status().Degraded) == 0 && w.metrics().value("degraded", "view") == 0 }, "a repaired view is still shown")
	exec("DROP TABLE target SYNC")
	await.True(t, named, "a view that fails again is not shown")
	exec("DROP VIEW watcher")
	await.True(t, func() bool { _, r := w.ready(); return len(r.Degraded) == 0 }, "a view that is gone is still shown")
}

// A rate of dead letters is a state, and no reason not to be ready.
func TestManyDeadLettersAreShown(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	w := watch(t, env)
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "ALTER TABLE event_log ADD CONSTRAINT no_cards CHECK position(event_context, '4111') = 0"))
	bad := func(n, of int) {
		before := w.metrics().value("rows_flushed_total") + w.metrics().value("dead_letters_total")
		_, err := env.Pool.Exec(t.Context(), `INSERT INTO outbox (event_type, event_context)
			SELECT 'paid', CASE WHEN n <= $1 THEN '["4111"]' ELSE '{}' END::json FROM generate_series(1, $2::int) AS n`, n, of)
		require.NoError(t, err)
		await.True(t, func() bool {
			m := w.metrics()
			return m.value("rows_flushed_total")+m.value("dead_letters_total") == before+float64(of)
		}, "the events are never written")
	}
	bad(9, 9)
	assert.Empty(t, w.status().Degraded, "a few are none")
	bad(1, 991)
	await.True(t, func() bool { return w.status().Throughput.Rows > 0 }, "the rows are in no point")
	assert.Empty(t, w.status().Degraded, "one in a hundred, and no more")
	bad(1, 1)
	var r ops.Readiness
	await.True(t, func() bool { // the row is counted before its batch is over
		var code int
		code, r = w.ready()
		return code == http.StatusOK
	}, "dead letters are a reason not to be ready")
	assert.Equal(t, []string{"11 of the 1,001 events of the last ten minutes became dead letters: see `streamer deadletter list`"}, r.Degraded)
	assert.InDelta(t, 1, w.metrics().value("degraded", "dead_letters"), 0)
}

// What a pipeline misses after a failover is shown as long as the process lives, and is no reason not to be ready.
func TestMissingEventsAreShown(t *testing.T) {
	t.Parallel()
	w := watch(t, testenv.New(t))
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	assert.Zero(t, w.metrics().value("degraded", "missing_events"))
	w.monitor.EventsMissing(&pipeline.MissingError{Slot: "a", Rows: []batch.Skipped{{Position: decode.Position{LSN: 16, Seq: 1}}, {}}})
	w.monitor.EventsMissing(&pipeline.MissingError{Slot: "a", Rows: []batch.Skipped{{}}})
	code, r := w.ready()
	assert.Equal(t, http.StatusOK, code)
	assert.Equal(t, []string{"3 events that were delivered again after a failover are missing in ClickHouse: deleted, skipped, or read from the slot by another program; compare with `streamer verify`"}, r.Degraded)
	assert.InDelta(t, 1, w.metrics().value("degraded", "missing_events"), 0)
	assert.Contains(t, w.status().Failures[1].Text, "ClickHouse does not have 2 events that slot a has delivered again and that count as written; the first is 00000000-0000-0000-0000-000000000000 of the commit at 0/10.")
}
