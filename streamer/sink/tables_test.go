package sink

import (
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/failure"
)

func named(name, value string) driver.NamedValue { return clickhouse.Named(name, value) }

func TestOurTablesAreAccepted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.CheckTables(t.Context()))
	f.exec("ALTER TABLE event_log ADD COLUMN extra String DEFAULT 'x'")
	require.NoError(t, f.CheckTables(t.Context()), "columns of the operator's own are none of our business")
	require.NoError(t, f.insert(sample(1, 1), 0, 1))
}

// Merges build it: at an insert it would cost more than the insert.
func TestInsertsLeaveTextIndexesToMerges(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec("ALTER TABLE event_log ADD INDEX `our words` lower(concat(event_context, event_type)) TYPE text(tokenizer = splitByNonAlpha)")
	f.exec("ALTER TABLE event_log ADD INDEX by_environment environment TYPE set(10), ADD INDEX by_text event_context TYPE text(tokenizer = splitByNonAlpha)")
	require.NoError(t, f.CheckTables(t.Context()))
	for lsn := range pglogrepl.LSN(3) {
		require.NoError(t, f.insert(sample(lsn+1, 100), 0, 100))
	}
	size := func(kind string) (bytes uint64) {
		require.NoError(t, f.ClickHouse.QueryRow(t.Context(), `SELECT sum(data_compressed_bytes) FROM system.data_skipping_indices
			WHERE database = currentDatabase() AND table = 'event_log' AND type = ?`, kind).Scan(&bytes))
		return bytes
	}
	assert.Zero(t, size("text"))
	assert.NotZero(t, size("set"), "the others are built at once")
	f.exec("OPTIMIZE TABLE event_log FINAL")
	assert.NotZero(t, size("text"))
	assert.Equal(t, 3, f.count("event_log WHERE hasAllTokens(event_context, 'n 77')"))
}

func TestTablesThatAreNotOursAreRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for change, want := range map[string]string{
		"RENAME COLUMN event_context TO context":       `column event_context is "" and must be String`,
		"MODIFY COLUMN metadata_version Int64":         `column metadata_version is "Int64" and must be UInt64`,
		"MODIFY COLUMN event_context Nullable(String)": `column event_context is "Nullable(String)" and must be String`,
		"DROP COLUMN trace_context":                    "",
	} {
		f.exec("DROP TABLE IF EXISTS changed SYNC")
		f.exec("CREATE TABLE changed AS event_log")
		f.exec("ALTER TABLE changed ADD COLUMN trace_context String")
		f.exec("ALTER TABLE changed " + change)
		s := New(f.ClickHouse, Tables{EventLog: "changed", DeadLetter: "event_dead_letter"}, f.source, OnTimeline(timeline))
		err := s.CheckTables(t.Context())
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "table `changed` is not ours")
		assert.Equal(t, failure.Fatal, failure.Of(err))
	}
}

func TestAMissingTableIsFatalWithItsFix(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := New(f.ClickHouse, Tables{EventLog: "nowhere", DeadLetter: "nowhere_either"}, f.source, OnTimeline(timeline))
	_, _, positionErr := s.Position(t.Context())
	_, deadLettersErr := s.HasDeadLetters(t.Context(), Range{}, nil)
	for name, err := range map[string]error{
		"check":        s.CheckTables(t.Context()),
		"position":     positionErr,
		"insert":       s.Insert(t.Context(), sample(1, 1), 0, 1, f.attempt()),
		"dead letters": deadLettersErr,
	} {
		require.ErrorContains(t, err, "nowhere", name)
		require.ErrorContains(t, err, "streamer migrate up", name)
		assert.Equal(t, failure.Fatal, failure.Of(err), name)
	}
}

func TestNamesAreQuoted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec("CREATE TABLE `select-from` AS event_log")
	s := New(f.ClickHouse, Tables{EventLog: "select-from", DeadLetter: "event_dead_letter"}, f.source, OnTimeline(timeline))
	require.NoError(t, s.CheckTables(t.Context()))
	require.NoError(t, s.Insert(t.Context(), sample(1, 1), 0, 1, f.attempt()))
	assert.Equal(t, 1, f.count("`select-from`"))
}
