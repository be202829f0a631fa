package migrations_test

import (
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/testenv"
)

// tableColumns lists "name type" of a table, in order.
func tableColumns(t *testing.T, env *testenv.Env, table string) []string {
	t.Helper()
	rows, err := env.ClickHouse.Query(t.Context(),
		"SELECT concat(name, ' ', type) FROM system.columns WHERE database = ? AND table = ? ORDER BY position",
		env.ClickHouseConfig.Database, table)
	require.NoError(t, err)
	defer rows.Close()
	var list []string
	for rows.Next() {
		var column string
		require.NoError(t, rows.Scan(&column))
		list = append(list, column)
	}
	require.NoError(t, rows.Err())
	return list
}

func TestEventLogIsThatOfTheContract(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	assert.Equal(t, []string{
		"event_id UUID", "event_type LowCardinality(String)", "event_date_time DateTime64(6, 'UTC')",
		"environment LowCardinality(String)", "event_context String", "metadata_version UInt64",
		"trace_id String", "published_by LowCardinality(String)",
		"source LowCardinality(String)", "commit_lsn UInt64", "commit_seq UInt32", "timeline UInt32",
		"commit_time DateTime64(6, 'UTC')", "ingested_at DateTime64(3, 'UTC')",
	}, tableColumns(t, env, "event_log"))
	assert.Contains(t, tableColumns(t, env, "event_log_json"), "event_context JSON")

	var engine, partition, sorting, definition string
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(),
		"SELECT engine, partition_key, sorting_key, create_table_query FROM system.tables WHERE database = ? AND name = 'event_log'",
		env.ClickHouseConfig.Database).Scan(&engine, &partition, &sorting, &definition))
	assert.Equal(t, "MergeTree", engine)
	assert.Equal(t, "toYYYYMM(ingested_at)", partition)
	assert.Equal(t, "event_type, event_date_time, event_id", sorting)
	for _, part := range []string{
		"non_replicated_deduplication_window = 1000", "fsync_after_insert = 1", "fsync_part_directory = 1", "PROJECTION p_position",
		"INDEX by_position", "INDEX by_time", "INDEX by_id", "INDEX by_trace",
	} {
		assert.Contains(t, definition, part)
	}
}

func TestProjectionAnswersWhereToGoOn(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), `INSERT INTO event_log (event_type, source, commit_lsn, commit_seq, timeline)
		SELECT 't', 's', intDiv(number, 10), number % 10 + 1, 1 FROM numbers(10000)`))
	const position = "max(bitOr(bitShiftLeft(toUInt128(commit_lsn), 64), toUInt128(bitOr(bitShiftLeft(toUInt64(commit_seq), 32), toUInt64(timeline)))))"
	assert.Contains(t, explain(t, env, "SELECT "+position+" FROM event_log WHERE source = 's'"), "p_position")
}

// Twenty parts of as many events, in the order of time, of twenty types each: the primary key, which
// begins with the type, skips nothing. What is asked for is in one part, a twentieth of the granules.
func TestIndexesAnswerTheQuestionsOfAnInvestigation(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "SYSTEM STOP MERGES event_log"))
	for part := range 20 {
		require.NoError(t, env.ClickHouse.Exec(t.Context(), fmt.Sprintf(`INSERT INTO event_log (event_id, trace_id, event_type, event_date_time, source, commit_lsn, commit_seq, timeline)
			SELECT toUUID(hex(sipHash128(number))), lower(hex(sipHash128(number))), toString(number %% 20), toDateTime64('2026-01-01 00:00:00', 6, 'UTC') + number, 's', number, 1, 1
			FROM numbers(%d, 20000)`, part*20_000)))
	}
	for index, condition := range map[string]string{
		"by_id":       "event_id = toUUID(hex(sipHash128(toUInt64(123456))))",
		"by_trace":    "trace_id = lower(hex(sipHash128(toUInt64(123456))))",
		"by_position": "commit_lsn BETWEEN 123456 AND 123556",
		"by_time":     "event_date_time >= '2026-01-02 00:00:00' AND event_date_time < '2026-01-02 01:00:00'",
	} {
		plan := explain(t, env, "SELECT event_type FROM event_log WHERE "+condition)
		found := regexp.MustCompile(`Name: ` + index + `\n[^/]*?Parts: \d+/\d+\n\s*Granules: (\d+)/(\d+)\n`).FindStringSubmatch(plan)
		require.NotNil(t, found, "%s: %s", index, plan)
		left, all := number(t, found[1]), number(t, found[2])
		assert.GreaterOrEqual(t, all, 20, "%s: the index is asked about every part: %s", index, plan)
		assert.Positive(t, left, index)
		assert.LessOrEqual(t, 10*left, all, "%s leaves at most a tenth: %s", index, plan)
	}
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

func TestEventsCanBeDeletedBesideTheProjection(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), `INSERT INTO event_log (event_type, source, commit_lsn, commit_seq, timeline)
		SELECT 't', 's', number, 1, 1 FROM numbers(10)`))
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "DELETE FROM event_log WHERE commit_lsn > 5"))
	var count uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM event_log").Scan(&count))
	assert.Equal(t, uint64(6), count)
}

// explain returns the plan of query, with the indexes that it uses.
func explain(t *testing.T, env *testenv.Env, query string) string {
	t.Helper()
	rows, err := env.ClickHouse.Query(t.Context(), "EXPLAIN indexes = 1 "+query)
	require.NoError(t, err)
	var plan strings.Builder
	for rows.Next() {
		var line string
		require.NoError(t, rows.Scan(&line))
		plan.WriteString(line + "\n")
	}
	require.NoError(t, rows.Close())
	return plan.String()
}

func TestJSONViewReadsEveryContext(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), `INSERT INTO event_log (event_type, event_context) SELECT * FROM values(
		'event_type String, event_context String', ('1', '{"user":{"id":7}}'), ('2', '[1]'), ('3', '{"a":123456789012345678901234567890}'), ('4', ''))`))
	var comment string
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT comment FROM system.tables WHERE database = ? AND name = 'event_log_json'",
		env.ClickHouseConfig.Database).Scan(&comment))
	assert.Contains(t, comment, "JSONExtractString")
	var seventh string
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(),
		"SELECT toString(event_context.user.id) FROM event_log_json WHERE event_type = '1'").Scan(&seventh))
	assert.Equal(t, "7", seventh)
	var all uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(),
		"SELECT count() FROM (SELECT toString(event_context) FROM event_log_json)").Scan(&all))
	assert.Equal(t, uint64(4), all)
}

func TestDeadLettersAreReplacedByTheirRetry(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for _, retried := range []string{"1970-01-01 00:00:00", "2026-01-02 03:04:05", "1970-01-01 00:00:00"} {
		require.NoError(t, env.ClickHouse.Exec(t.Context(), `INSERT INTO event_dead_letter (source, commit_lsn, commit_seq, retried_at)
			SELECT 's', 1, 1, toDateTime64(?, 3, 'UTC')`, retried))
	}
	var count uint64
	var year uint16
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(),
		"SELECT count(), max(toYear(retried_at)) FROM event_dead_letter FINAL").Scan(&count, &year))
	assert.Equal(t, uint64(1), count)
	assert.Equal(t, uint16(2026), year)
}

func TestSeveralEventLogsShareADatabase(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	second := env.ClickHouseConfig
	second.EventLogTable = "audit-2026"
	require.NoError(t, migrations.UpClickHouse(t.Context(), second, slog.New(slog.DiscardHandler)))
	assert.Equal(t, tableColumns(t, env, "event_log"), tableColumns(t, env, "audit-2026"))
	assert.NotEmpty(t, tableColumns(t, env, "audit-2026_json"))
	list, err := migrations.StatusClickHouse(t.Context(), second)
	require.NoError(t, err)
	for _, m := range list {
		assert.True(t, m.Applied(), m.Name)
	}
}
