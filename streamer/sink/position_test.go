package sink

import (
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/streamer/decode"
)

// A look before a repeated insert sees the rows of its range, and no others.
func TestRowsOfARangeAreFound(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.insert(sample(1, 3), 0, 3)) // 1#1 to 1#3
	has := func(s *Sink, after, through decode.Position, except ...decode.Position) bool {
		m := make(map[decode.Position]bool)
		for _, p := range except {
			m[p] = true
		}
		there, err := s.HasRows(t.Context(), Range{after, through}, m)
		require.NoError(t, err)
		return there
	}
	first := sample(1, 3).Position(0)
	last := sample(1, 3).Position(2)
	assert.True(t, has(f.Sink, decode.Position{}, last))
	assert.True(t, has(f.Sink, first, last))
	assert.False(t, has(f.Sink, last, at(last.LSN+10, 1)), "behind them")
	assert.False(t, has(f.Sink, decode.Position{}, at(first.LSN-1, 9)), "before them")
	assert.False(t, has(f.as(Source{SystemID: "1", Slot: "other"}), decode.Position{}, last), "of another source")
	second := sample(1, 3).Position(1)
	assert.True(t, has(f.Sink, decode.Position{}, last, first, second))
	assert.False(t, has(f.Sink, decode.Position{}, last, first, second, last), "all of them may have come otherwise")
}

func TestPositionsOfARangeAreThoseOfBothTables(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.insert(sample(7, 3), 0, 2))
	require.NoError(t, f.PutDeadLetters(t.Context(), []decode.Reject{{Position: at(7, 3)}, {Position: at(9, 1)}}, f.attempt()))
	there, err := f.PositionsIn(t.Context(), Range{After: at(7, 1), Through: at(8, 1)})
	require.NoError(t, err)
	assert.Equal(t, map[decode.Position]bool{at(7, 2): true, at(7, 3): true}, there)
	there, err = f.as(Source{SystemID: "1", Slot: "other"}).PositionsIn(t.Context(), Range{Through: at(9, 9)})
	require.NoError(t, err)
	assert.Empty(t, there)
}

// The time of a commit is that of the last one before a position, whatever the times are.
func TestTheTimeOfTheCommitBeforeAPosition(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	hour := time.Hour.Microseconds()
	for lsn, when := range map[pglogrepl.LSN]int64{1 << 62: sampleTime + hour, 1 << 63: sampleTime} {
		rows := sample(lsn, 2)
		rows.CommitTime[0], rows.CommitTime[1] = when, when
		require.NoError(t, f.insert(rows, 0, 2))
	}
	for lsn, want := range map[pglogrepl.LSN]int64{1 << 62: 0, 1<<62 + 1: sampleTime + hour, 1 << 63: sampleTime + hour, 1<<63 + 1: sampleTime} {
		got, err := f.CommittedBefore(t.Context(), f.source, lsn)
		require.NoError(t, err)
		assert.Equal(t, want, got.UnixMicro(), lsn)
	}
	got, err := f.CommittedBefore(t.Context(), Source{SystemID: "1", Slot: "other"}, 1<<63+1)
	require.NoError(t, err)
	assert.Zero(t, got.UnixMicro())
}

func TestDeadLettersOfARangeAreFound(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.PutDeadLetters(t.Context(), []decode.Reject{{Position: at(1<<63, 2)}, {Position: at(1<<63, 3)}}, f.attempt()))
	has := func(after, through decode.Position, want ...decode.Position) bool {
		m := make(map[decode.Position]bool)
		for _, p := range want {
			m[p] = true
		}
		there, err := f.HasDeadLetters(t.Context(), Range{after, through}, m)
		require.NoError(t, err)
		return there
	}
	assert.True(t, has(at(1, 1), at(1<<63, 3), at(1<<63, 3)))
	assert.False(t, has(at(1, 1), at(1<<63, 3), at(1<<63, 1)))
	assert.False(t, has(at(1<<63, 2), at(1<<63, 3), at(1<<63, 2)), "before the range")
}

func TestEventsAreFoundByID(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	rows := sample(1, 3)
	require.NoError(t, f.insert(rows, 0, 3))
	dead, gone := uuid.New(), uuid.New()
	require.NoError(t, f.PutDeadLetters(t.Context(), []decode.Reject{{Position: at(9, 1), ID: dead}}, f.attempt()))
	missing, err := f.MissingEvents(t.Context(), []uuid.UUID{rows.IDAt(0), dead, gone, rows.IDAt(2)})
	require.NoError(t, err)
	assert.Equal(t, []uuid.UUID{gone}, missing)
	missing, err = f.MissingEvents(t.Context(), nil)
	require.NoError(t, err)
	assert.Empty(t, missing)
}

// No profile decides what is read: these two change the maximum of nothing.
func TestAProfileDoesNotChangeAnAnswer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	options, err := clickhouse.Options(f.ClickHouseConfig)
	require.NoError(t, err)
	options.Settings = ch.Settings{"aggregate_functions_null_for_empty": 1, "empty_result_for_aggregation_by_empty_set": 1}
	conn, err := clickhouse.OpenOptions(options)
	require.NoError(t, err)
	defer conn.Close()
	s := New(conn, Tables{EventLog: "event_log", DeadLetter: "event_dead_letter"}, f.source, OnTimeline(timeline))
	p, last, err := s.Position(t.Context())
	require.NoError(t, err)
	assert.Zero(t, p)
	assert.Zero(t, last)
}
