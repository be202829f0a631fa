package e2e

import (
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/streamer/pipeline"
)

// Whatever a view fails with, the events are written: it is reported by its name, and nothing stops.
func TestAViewThatFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		column, expression string
		change             func(*setup)
		says               string
	}{
		"by the limit of memory": {
			"UInt64", "arraySum(range(20000000 + commit_seq))",
			func(c *setup) { c.Settings = ch.Settings{"max_memory_usage": 100 << 20} }, "MEMORY_LIMIT_EXCEEDED",
		},
		"by its time":                   {"UInt64", "sleepEachRow(0.5)", func(c *setup) { c.InsertTimeout = time.Second }, "did not answer within CLICKHOUSE_INSERT_TIMEOUT"},
		"by its types":                  {"Array(UInt32)", "[commit_seq]", func(*setup) {}, "code 53 (TYPE_MISMATCH)"},
		"by a value":                    {"UInt8", "throwIf(commit_seq = 3)", func(*setup) {}, "code 395 (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO)"},
		"by a constraint of its target": {"UInt32, CONSTRAINT small CHECK x < 3", "commit_seq", func(*setup) {}, "code 469 (VIOLATED_CONSTRAINT)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			command(t, env, "CREATE TABLE target (x "+c.column+") ENGINE = MergeTree ORDER BY tuple()")
			command(t, env, "CREATE MATERIALIZED VIEW watcher TO target AS SELECT "+c.expression+" AS x FROM LOG")
			if name == "by its types" { // ClickHouse refuses to create such a view
				command(t, env, "DROP TABLE target SYNC")
				command(t, env, "CREATE TABLE target (x Array(Array(UInt8))) ENGINE = MergeTree ORDER BY tuple()")
			}
			s := start(t, env, c.change)
			publish(t, env, 5)
			awaitRows(t, env, 5)
			confirmedPast(t, env)
			failed := s.seen.failed()
			require.NotEmpty(t, failed)
			assert.Equal(t, []string{env.ClickHouseConfig.Database + ".watcher"}, failed[0].Views)
			assert.Contains(t, failed[0].Error(), c.says)
			assert.Contains(t, s.log.text(), env.ClickHouseConfig.Database+".watcher")
			goesOnWithoutViews(t, env, s)
		})
	}
}

// goesOnWithoutViews demands that events are still delivered, once, and none is a dead letter.
func goesOnWithoutViews(t testing.TB, env *testenv.Env, s *streamer) {
	t.Helper()
	before, sessions := countRows(t, env), s.seen.sessions.Load()
	publish(t, env, 3)
	awaitRows(t, env, before+3)
	confirmedPast(t, env)
	assert.Equal(t, before+3, count(t, env, "uniqExact(event_id)", ""))
	assert.Equal(t, before+3, countRows(t, env))
	assert.Zero(t, s.seen.deadLetters.Load())
	assert.Equal(t, sessions, s.seen.sessions.Load())
	assert.Equal(t, pipeline.Streaming, s.pipeline.Progress().State())
}

// A view whose target is gone refuses every insert: events go on without it, for a streamer that runs
// and for one that starts, and with it again when it is repaired.
func TestAViewWithoutItsTarget(t *testing.T) {
	t.Parallel()
	for name, newEnv := range map[string]func(testing.TB) *testenv.Env{"one server": newEnv, "two replicas": replicated} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			const target = "CREATE TABLE target (event_id UUID) ENGINE = MergeTree ORDER BY event_id SETTINGS non_replicated_deduplication_window = 100"
			command(t, env, target)
			command(t, env, "CREATE TABLE healthy AS target")
			command(t, env, "CREATE MATERIALIZED VIEW watcher TO target AS SELECT event_id FROM LOG")
			command(t, env, "CREATE MATERIALIZED VIEW other TO healthy AS SELECT event_id FROM LOG")
			s := start(t, env)
			publish(t, env, 5)
			awaitRows(t, env, 5)
			confirmedPast(t, env)
			assert.Empty(t, s.seen.failed())

			command(t, env, "DROP TABLE target SYNC")
			publish(t, env, 5)
			awaitRows(t, env, 10)
			goesOnWithoutViews(t, env, s)
			assert.Zero(t, s.seen.retries.Load(), "it is no error of the insert")
			failed := s.seen.failed()
			require.NotEmpty(t, failed)
			assert.Equal(t, []string{env.ClickHouseConfig.Database + ".watcher"}, failed[0].Views)
			s.stop()

			s = start(t, env)
			publish(t, env, 5)
			awaitRows(t, env, 18)
			goesOnWithoutViews(t, env, s)
			require.NotEmpty(t, s.seen.failed())

			command(t, env, target)
			many := len(s.seen.failed())
			publish(t, env, 5)
			awaitRows(t, env, 26)
			confirmedPast(t, env)
			assert.Len(t, s.seen.failed(), many)
			var repaired, healthy uint64
			require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT (SELECT count() FROM target), (SELECT uniqExact(event_id) FROM healthy)").Scan(&repaired, &healthy))
			assert.EqualValues(t, 5, repaired, "what is written since, it gets")
			assert.EqualValues(t, 26, healthy, "the others lack nothing")
		})
	}
}

// replicated is an environment whose ClickHouse looks like two replicas, the second of which lags.
func replicated(t testing.TB) *testenv.Env {
	t.Helper()
	env, _ := twoNodes(t, 50*time.Millisecond)
	return env
}
