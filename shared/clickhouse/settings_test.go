package clickhouse_test

import (
	"fmt"
	"testing"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// Every fixed setting exists under its name, and its value is ClickHouse's default:
// a server without profiles answers as before.
func TestFixedSettingsAreClickHousesDefaults(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	options, err := clickhouse.Options(env.ClickHouseConfig)
	require.NoError(t, err)
	require.Greater(t, len(options.Settings), 20)
	for name, value := range options.Settings {
		var byDefault string
		err := env.ClickHouse.QueryRow(t.Context(), "SELECT default FROM system.settings WHERE name = ?", name).Scan(&byDefault)
		if assert.NoError(t, err, name) && name != "async_insert" {
			assert.Equal(t, fmt.Sprint(value), byDefault, name)
		}
	}
}

func TestQuorum(t *testing.T) {
	t.Parallel()
	options, err := clickhouse.Options(clickhouse.Config{Host: "a", Port: 1, InsertQuorum: 2})
	require.NoError(t, err)
	assert.EqualValues(t, 2, options.Settings["insert_quorum"])
	assert.EqualValues(t, 0, options.Settings["insert_quorum_parallel"])
}

// A profile that changes what aggregates, limits and caches do does not change an
// answer, not even if it forbids to change them back to what they are.
func TestAProfileChangesNoAnswer(t *testing.T) {
	t.Parallel()
	engine := testenv.StartClickHouse(t, embedded.ClickHouseOptions{Profile: `
		<aggregate_functions_null_for_empty>1</aggregate_functions_null_for_empty>
		<empty_result_for_aggregation_by_empty_set>1</empty_result_for_aggregation_by_empty_set>
		<join_use_nulls>1</join_use_nulls> <limit>1</limit> <offset>1</offset> <final>1</final>
		<additional_result_filter>0</additional_result_filter> <max_rows_to_read>1</max_rows_to_read>
		<read_overflow_mode>break</read_overflow_mode> <session_timezone>Asia/Tokyo</session_timezone>
		<async_insert>0</async_insert> <constraints><async_insert><const/></async_insert></constraints>`})
	conn, err := clickhouse.Open(t.Context(), engine.Config("default"))
	require.NoError(t, err)
	defer conn.Close()
	for sql, want := range map[string]string{
		"SELECT toString(max(number)) FROM numbers(0)":                                               "0",
		"SELECT toString(count()) FROM (SELECT 1 UNION ALL SELECT 1)":                                "2",
		"SELECT toString(b) FROM (SELECT 1 AS a) x LEFT JOIN (SELECT 2 AS a, 3 AS b) y ON x.a = y.a": "0",
		"SELECT toString(toDateTime(0))":                                                             "1970-01-01 00:00:00",
	} {
		var got string
		require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&got), sql)
		assert.Equal(t, want, got, sql)
	}
	var rows uint64
	err = conn.QueryRow(t.Context(), "SELECT count() FROM numbers(1000000)  WHERE number % 2 = 0").Scan(&rows)
	require.ErrorContains(t, err, "TOO_MANY_ROWS", "a limit is an error, and no partial answer")
}

// A limit of a profile is an error, whatever the profile wants to happen then: no answer is cut.
func TestALimitOfAProfileCutsNoAnswer(t *testing.T) {
	t.Parallel()
	const modes = "<read_overflow_mode>break</read_overflow_mode> <read_overflow_mode_leaf>break</read_overflow_mode_leaf> " +
		"<result_overflow_mode>break</result_overflow_mode> <group_by_overflow_mode>any</group_by_overflow_mode> " +
		"<sort_overflow_mode>break</sort_overflow_mode> <set_overflow_mode>break</set_overflow_mode> " +
		"<distinct_overflow_mode>break</distinct_overflow_mode> <join_overflow_mode>break</join_overflow_mode>"
	engine := testenv.StartClickHouse(t, embedded.ClickHouseOptions{Profile: modes})
	options, err := clickhouse.Options(engine.Config("default"))
	require.NoError(t, err)
	ours, err := driver.Open(options)
	require.NoError(t, err)
	defer ours.Close()
	options.Settings = nil
	bare, err := driver.Open(options)
	require.NoError(t, err)
	defer bare.Close()

	const many = "numbers(1000000)"
	rows := func(conn driver.Conn, sql, limit string) (n int, err error) {
		ctx := driver.Context(t.Context(), driver.WithSettings(driver.Settings{limit: 10, "max_block_size": 1000, "preferred_block_size_bytes": 0}))
		list, err := conn.Query(ctx, sql)
		if err != nil {
			return 0, err
		}
		defer list.Close()
		for list.Next() {
			n++
		}
		return n, list.Err()
	}
	for limit, sql := range map[string]string{
		"max_result_rows":      "SELECT number FROM " + many,
		"max_result_bytes":     "SELECT number FROM " + many,
		"max_rows_to_read":     "SELECT number FROM " + many,
		"max_bytes_to_read":    "SELECT number FROM " + many,
		"max_rows_to_group_by": "SELECT number FROM " + many + " GROUP BY number",
		"max_rows_to_sort":     "SELECT number FROM " + many + " ORDER BY number % 1000",
		"max_rows_in_set":      "SELECT number FROM " + many + " WHERE number IN (SELECT number FROM " + many + ")",
		"max_rows_in_distinct": "SELECT DISTINCT number FROM " + many,
		"max_rows_in_join":     "SELECT a.number FROM " + many + " AS a INNER JOIN " + many + " AS b ON a.number = b.number",
	} {
		n, err := rows(bare, sql, limit)
		require.NoError(t, err, limit)
		assert.Less(t, n, 1000000, "%s cuts an answer without our settings", limit)
		_, err = rows(ours, sql, limit)
		require.Error(t, err, limit)
		assert.Regexp(t, "TOO_MANY_|SET_SIZE_LIMIT_EXCEEDED|LIMIT_EXCEEDED", err.Error(), limit)
	}
}

// ClickHouse ignores select_sequential_consistency on engines without replicas;
// here it shows which engines get it.
func TestReadOwnWritesIsForReplicas(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for engine, want := range map[string]uint8{
		"MergeTree": 0, "ReplicatedMergeTree": 1, "SharedMergeTree": 1, "SharedReplacingMergeTree": 1, "Distributed": 0, "": 0,
	} {
		var got uint8
		ctx := clickhouse.ReadOwnWrites(t.Context(), engine)
		require.NoError(t, env.ClickHouse.QueryRow(ctx, "SELECT toUInt8(getSetting('select_sequential_consistency'))").Scan(&got))
		assert.Equal(t, want, got, engine)
	}
}

// A user's settings on a context do not remove the fixed ones.
func TestSettingsOfAQueryAreAdded(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	ctx := driver.Context(t.Context(), driver.WithSettings(driver.Settings{"max_threads": 1}))
	var threads, inserts uint64
	require.NoError(t, env.ClickHouse.QueryRow(ctx, "SELECT toUInt64(getSetting('max_threads')), toUInt64(getSetting('async_insert'))").Scan(&threads, &inserts))
	assert.EqualValues(t, 1, threads)
	assert.Zero(t, inserts)
}
