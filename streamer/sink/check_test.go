package sink

import (
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	ours "diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
)

// What would lose or duplicate rows after a lost answer is refused before the first insert.
func TestATableThatCannotKeepThePromiseIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		create []string
		want   string // "": it is accepted
	}{
		"ours":                {[]string{"CREATE TABLE t AS event_log"}, ""},
		"by day and source":   {[]string{"CREATE TABLE t AS event_log ENGINE = MergeTree PARTITION BY (toDate(ingested_at), source) ORDER BY event_id SETTINGS non_replicated_deduplication_window = 1000"}, ""},
		"replacing":           {[]string{"CREATE TABLE t AS event_log ENGINE = ReplacingMergeTree ORDER BY event_id SETTINGS deduplicate_merge_projection_mode = 'drop'"}, "has the engine ReplacingMergeTree"},
		"null":                {[]string{"CREATE TABLE t AS event_log ENGINE = Null"}, "has the engine Null"},
		"a view":              {[]string{"CREATE VIEW t AS SELECT * FROM event_log"}, "has the engine View"},
		"a materialized view": {[]string{"CREATE MATERIALIZED VIEW t ENGINE = MergeTree ORDER BY event_id AS SELECT * FROM event_log"}, "has the engine MaterializedView"},
		"many tables":         {[]string{"CREATE TABLE t AS event_log ENGINE = Merge(currentDatabase(), '^event_log$')"}, "has the engine Merge"},
		"a buffer":            {[]string{"CREATE TABLE t AS event_log ENGINE = Buffer(currentDatabase(), event_log, 1, 1, 1, 1, 1, 1, 1)"}, "has the engine Buffer"},
		"no window":           {[]string{"CREATE TABLE t AS event_log ENGINE = MergeTree ORDER BY event_id"}, "remembers the tokens of 0 inserts"},
		"a small window":      {[]string{"CREATE TABLE t AS event_log", "ALTER TABLE t MODIFY SETTING non_replicated_deduplication_window = 99"}, "remembers the tokens of 99 inserts"},
		"many parts of an insert": {[]string{"CREATE TABLE t AS event_log ENGINE = MergeTree PARTITION BY (toYYYYMM(ingested_at), event_type) ORDER BY event_id " +
			"SETTINGS non_replicated_deduplication_window = 1000"}, "has the partition key (toYYYYMM(ingested_at), event_type)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			for _, sql := range c.create {
				f.exec(sql)
			}
			s := New(f.ClickHouse, Tables{EventLog: "t", DeadLetter: "event_dead_letter"}, f.source, OnTimeline(timeline))
			require.NoError(t, s.CheckTables(t.Context()))
			err := s.CheckEngine(t.Context())
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			assert.Equal(t, failure.Fatal, failure.Of(err))
		})
	}
}

// A profile filters what our user reads.
func TestAUserWhoDoesNotSeeEveryRowIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.insert(sample(1, 10), 0, 10)) // of an empty table nothing is read
	options, err := ours.Options(f.ClickHouseConfig)
	require.NoError(t, err)
	options.Settings["additional_table_filters"] = "{'event_log': 'commit_lsn > 5'}"
	conn, err := clickhouse.Open(options)
	require.NoError(t, err)
	defer conn.Close()
	err = New(conn, f.tables, f.source, OnTimeline(timeline)).CheckEngine(t.Context())
	require.ErrorContains(t, err, "does not see all rows")
	require.ErrorContains(t, err, "EXPLAIN: ")
	assert.Equal(t, failure.Fatal, failure.Of(err))
	require.NoError(t, f.CheckEngine(t.Context()))
	for _, line := range []string{"  Row level filter column: greater(commit_lsn, 6)", "   Prewhere filter", "Filter ((WHERE + Change column names))"} {
		assert.True(t, filterStep.MatchString(line), line)
	}
	assert.False(t, filterStep.MatchString("  ReadFromMergeTree (filter.filter)"))
}

// A row policy and a cluster are an administrator's, in the files of the server.
func TestARowPolicyAndADistributedTableAreRefused(t *testing.T) {
	t.Parallel()
	engine := testenv.StartClickHouse(t, embedded.ClickHouseOptions{
		User:   "<databases><default><filtered><filter>commit_lsn != 5</filter></filtered></default></databases>",
		Server: "<remote_servers><two><shard><replica><host>127.0.0.1</host><port>1</port></replica></shard></two></remote_servers>",
		Grants: "REMOTE, TABLE ENGINE",
	})
	conn, err := ours.Open(t.Context(), engine.Config("default"))
	require.NoError(t, err)
	defer conn.Close()
	for _, sql := range []string{
		"CREATE TABLE plain (commit_lsn UInt64) ENGINE = MergeTree ORDER BY commit_lsn SETTINGS non_replicated_deduplication_window = 1000",
		"CREATE TABLE filtered AS plain", "CREATE TABLE distributed AS plain ENGINE = Distributed(two, default, plain)",
		"INSERT INTO plain SELECT number FROM numbers(10)", "INSERT INTO filtered SELECT number FROM numbers(10)",
	} {
		require.NoError(t, conn.Exec(t.Context(), sql), sql)
	}
	var rows uint64
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM filtered").Scan(&rows))
	require.EqualValues(t, 9, rows, "the policy holds")
	for table, want := range map[string]string{
		"plain": "", "filtered": "does not see all rows", "distributed": "has the engine Distributed",
	} {
		err := New(conn, Tables{EventLog: table}, Source{}, OnTimeline(timeline)).CheckEngine(t.Context())
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want)
		assert.Equal(t, failure.Fatal, failure.Of(err))
	}
}
