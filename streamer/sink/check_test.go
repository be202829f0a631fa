package sink

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	ours "diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/streamer/decode"
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
		"timelines": {[]string{"CREATE TABLE t AS event_log ENGINE = MergeTree PARTITION BY (toYYYYMM(ingested_at), timeline) ORDER BY event_id " +
			"SETTINGS non_replicated_deduplication_window = 1000"}, "ingested_at and source alone"},
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
			err := s.CheckEngine(t.Context(), InsertBound(time.Minute))
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			assert.Equal(t, failure.Fatal, failure.Of(err))
		})
	}
}

// Dead letters that are not kept would be confirmed.
func TestATableThatLosesDeadLettersIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.PutDeadLetters(t.Context(), []decode.Reject{{Type: "t"}}, f.attempt()))
	check := func(table, filters string) error {
		options, err := ours.Options(f.ClickHouseConfig)
		require.NoError(t, err)
		options.Settings["additional_table_filters"] = filters
		conn, err := ours.OpenOptions(options)
		require.NoError(t, err)
		defer conn.Close()
		s := New(conn, Tables{EventLog: "event_log", DeadLetter: table}, f.source, OnTimeline(timeline))
		return s.CheckEngine(t.Context(), InsertBound(time.Minute))
	}
	require.NoError(t, check("event_dead_letter", ""))
	for name, statement := range map[string]string{
		"Null": "CREATE TABLE null AS event_dead_letter ENGINE = Null", "MergeTree": "CREATE TABLE plain AS event_dead_letter ENGINE = MergeTree ORDER BY commit_lsn",
	} {
		f.exec(statement)
		require.ErrorContains(t, check(strings.Fields(statement)[2], ""), "has the engine "+name)
	}
	require.ErrorContains(t, check("event_dead_letter", "{'event_dead_letter': 'commit_lsn > 5'}"), "does not see all rows of `event_dead_letter`")
}

// The window is the table's own or the server's, and what it holds for long enough.
func TestTheWindowOfReplicas(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for name, c := range map[string]struct{ full, want string }{
		"enough":    {"replicated_deduplication_window = 100, replicated_deduplication_window_seconds = 95", ""},
		"few":       {"replicated_deduplication_window = 99, replicated_deduplication_window_seconds = 604800", "the tokens of 99 inserts"},
		"too short": {"replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 94", "for 94 s, and one whose answer is lost may still be written for 95 s"},
	} {
		err := f.checkWindow(t.Context(), engine{engine: "ReplicatedMergeTree", full: "ReplicatedMergeTree ORDER BY a SETTINGS " + c.full}, InsertBound(time.Minute))
		if c.want == "" {
			require.NoError(t, err, name)
			continue
		}
		require.ErrorContains(t, err, c.want, name)
	}
	require.NoError(t, f.checkWindow(t.Context(), engine{engine: "ReplicatedMergeTree", full: "ReplicatedMergeTree ORDER BY a"}, InsertBound(time.Minute)))
	assert.GreaterOrEqual(t, f.window, 1000, "the server's default")
}

// A profile filters what our user reads.
func TestAUserWhoDoesNotSeeEveryRowIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.insert(sample(1, 10), 0, 10)) // of an empty table nothing is read
	options, err := ours.Options(f.ClickHouseConfig)
	require.NoError(t, err)
	options.Settings["additional_table_filters"] = "{'event_log': 'commit_lsn > 5'}"
	conn, err := ours.OpenOptions(options)
	require.NoError(t, err)
	defer conn.Close()
	err = New(conn, f.tables, f.source, OnTimeline(timeline)).CheckEngine(t.Context(), InsertBound(time.Minute))
	require.ErrorContains(t, err, "does not see all rows")
	require.ErrorContains(t, err, "EXPLAIN: ")
	assert.Equal(t, failure.Fatal, failure.Of(err))
	require.NoError(t, f.CheckEngine(t.Context(), InsertBound(time.Minute)))
	for _, line := range []string{"  Row level filter column: greater(commit_lsn, 6)", "   Prewhere filter", "Filter ((WHERE + Change column names))"} {
		assert.True(t, filterStep.MatchString(line), line)
	}
	assert.False(t, filterStep.MatchString("  ReadFromMergeTree (filter.filter)"))
}

// A row policy, a cluster and a profile are in the files of the server.
func TestWhatAnAdministratorConfigures(t *testing.T) {
	t.Parallel()
	engine := testenv.StartClickHouse(t, embedded.ClickHouseOptions{
		User:    "<databases><default><filtered><filter>commit_lsn != 5</filter></filtered></default></databases>",
		Server:  "<remote_servers><two><shard><replica><host>127.0.0.1</host><port>1</port></replica></shard></two></remote_servers>",
		Grants:  "REMOTE, TABLE ENGINE",
		Profile: "<insert_quorum>2</insert_quorum> <max_result_rows>100</max_result_rows>",
	})
	conn, err := ours.Open(t.Context(), engine.Config("default"))
	require.NoError(t, err)
	defer conn.Close()
	for _, sql := range []string{
		"CREATE TABLE plain (commit_lsn UInt64, event_id UUID DEFAULT toUUID(leftPad(hex(commit_lsn), 32, '0'))) ENGINE = MergeTree ORDER BY commit_lsn SETTINGS non_replicated_deduplication_window = 1000",
		"CREATE TABLE dead_letters (source String, commit_lsn UInt64, commit_seq UInt32, event_id UUID DEFAULT toUUID(leftPad(hex(commit_lsn), 32, '0'))) ENGINE = ReplacingMergeTree ORDER BY commit_lsn",
		"INSERT INTO dead_letters (source, commit_lsn, commit_seq) SELECT '/', number + 1, number + 2 FROM numbers(300)",
		"CREATE TABLE filtered AS plain", "CREATE TABLE distributed AS plain ENGINE = Distributed(two, default, plain)",
		"INSERT INTO plain (commit_lsn) SELECT number FROM numbers(10)", "INSERT INTO filtered (commit_lsn) SELECT number FROM numbers(10)",
	} {
		require.NoError(t, conn.Exec(t.Context(), sql), sql)
	}
	var rows uint64
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM filtered").Scan(&rows))
	require.EqualValues(t, 9, rows, "the policy holds")
	for table, want := range map[string]string{
		"plain": "", "filtered": "does not see all rows", "distributed": "has the engine Distributed",
	} {
		err := New(conn, Tables{EventLog: table, DeadLetter: "dead_letters"}, Source{}, OnTimeline(timeline)).CheckEngine(t.Context(), InsertBound(time.Minute))
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want)
		assert.Equal(t, failure.Fatal, failure.Of(err))
	}
	s := New(conn, Tables{EventLog: "plain", DeadLetter: "dead_letters"}, Source{}, OnTimeline(timeline))
	s.knowsEngine = true
	there, err := s.DeadLettersIn(t.Context(), Range{After: at(1, 2), Through: at(201, 202)})
	require.NoError(t, err, "more dead letters than rows of a result")
	assert.Len(t, there, 200)
	assert.True(t, there[at(201, 202)])
	var ids []uuid.UUID
	for n := range 302 {
		ids = append(ids, uuid.UUID{14: byte(n >> 8), 15: byte(n)})
	}
	missing, err := s.MissingEvents(t.Context(), ids)
	require.NoError(t, err, "more events than rows of a result")
	assert.Equal(t, ids[301:], missing)
	s.mayLag = true
	require.ErrorContains(t, s.checkQuorum(t.Context()), "has insert_quorum = 2")
	s.quorum = true
	require.NoError(t, s.checkQuorum(t.Context()))
}
