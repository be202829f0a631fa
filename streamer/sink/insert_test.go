package sink

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	ours "diehard/shared/clickhouse"
	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/streamer/decode"
)

// The token decides, and not the content: a second try is recognised, and
// another event may look exactly the same.
func TestATokenMakesARetryHarmless(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	rows := sample(1, 10)
	a := f.attempt()
	require.NoError(t, f.Insert(t.Context(), rows, 0, 10, a))
	require.NoError(t, f.Insert(t.Context(), sample(2, 10), 0, 10, InsertRequest{QueryID: a.QueryID + "-2", Token: a.Token, IngestedAt: time.Now(), Verify: holds}))
	assert.Equal(t, 10, f.count("event_log"))
	require.NoError(t, f.Insert(t.Context(), rows, 0, 10, InsertRequest{QueryID: a.QueryID + "-3", Token: "another", IngestedAt: a.IngestedAt, Verify: holds}))
	assert.Equal(t, 20, f.count("event_log"))
}

// Verify is asked when a successor that fences would see the query, and before it has its rows.
func TestVerifyIsAskedOnceTheServerKnowsTheQuery(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	a := f.attempt()
	asked := 0
	a.Verify = func(context.Context) error {
		asked++
		assert.Equal(t, 1, f.count("system.processes WHERE query_id = '"+a.QueryID+"'"))
		assert.Zero(t, f.count("event_log"))
		return nil
	}
	require.NoError(t, f.Insert(t.Context(), sample(1, 2), 0, 2, a))
	assert.Equal(t, 1, asked)
	assert.Equal(t, 2, f.count("event_log"))
}

func TestNothingIsInsertedWhenVerifyFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	fenced := failure.Wrap(failure.Fatal, errors.New("fenced"))
	a := f.attempt()
	a.Verify = func(context.Context) error { return fenced }
	rows := sample(1, 2)
	err := f.Insert(t.Context(), rows, 0, 2, a)
	require.ErrorIs(t, err, fenced)
	assert.Equal(t, failure.Fatal, failure.Of(err))
	require.EqualError(t, err, "fenced", "as it is")
	other := f.attempt() // the other query ends with its connection, not at once
	other.Verify = a.Verify
	require.ErrorIs(t, f.PutDeadLetters(t.Context(), []decode.Reject{{Position: at(1, 1)}}, other), fenced)

	await.True(t, func() bool {
		return f.count("system.processes WHERE startsWith(query_id, '"+f.source.QueryPrefix()+"')") == 0
	}, "the query ends with its connection")
	assert.Zero(t, f.count("event_log"))
	assert.Zero(t, f.count("event_dead_letter"))
	require.NoError(t, f.insert(rows, 0, 2), "the token was not used up")
	assert.Equal(t, 2, f.count("event_log"))
}

func TestAnInsertEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	a := f.attempt()
	a.Verify = func(context.Context) error { cancel(); return nil }
	err := f.Insert(ctx, sample(1, 2), 0, 2, a)
	require.Error(t, err, "of the context or of the connection that it closed")
	assert.Equal(t, failure.Transient, failure.Of(err), "whether it is written is not known")
}

func TestWhatClickHouseRefusesIsPoison(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec("ALTER TABLE event_log ADD CONSTRAINT short CHECK length(event_context) < 9")
	rows := sample(1, 20) // the contexts of the second ten are longer
	require.NoError(t, f.insert(rows, 0, 10))
	err := f.insert(rows, 9, 11)
	assert.Equal(t, failure.Poison, failure.Of(err), "%v", err)
	assert.Equal(t, int32(469), Code(err))
	assert.Equal(t, 10, f.count("event_log"), "nothing of a refused block")
}

// A column type of today may be another tomorrow, behind CheckTables' back.
func TestAColumnThatChangesItsTypeIsFatal(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.CheckTables(t.Context()))
	f.exec("ALTER TABLE event_log MODIFY COLUMN metadata_version String")
	err := f.insert(sample(1, 1), 0, 1)
	require.ErrorContains(t, err, "column metadata_version is String, not UInt64")
	assert.Equal(t, failure.Fatal, failure.Of(err))
	assert.Zero(t, f.count("event_log"))
}

func TestPositionIsTheLastRowOfTheSource(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	expect := func(s *Sink, want decode.Position, line uint32) {
		t.Helper()
		got, gotLine, err := s.Position(t.Context())
		require.NoError(t, err)
		assert.Equal(t, want, got)
		assert.Equal(t, line, gotLine)
	}
	other := f.as(Source{SystemID: f.source.SystemID, Slot: "other"})
	expect(f.Sink, decode.Position{}, 0)

	require.NoError(t, f.insert(sample(1<<40, 3), 0, 3))
	expect(f.Sink, at(1<<40, 3), timeline)
	expect(other, decode.Position{}, 0)
	require.NoError(t, f.insert(sample(1<<40-1, 9), 0, 9))
	expect(f.Sink, at(1<<40, 3), timeline)
	require.NoError(t, f.insert(sample(1<<63, 1), 0, 1))
	expect(f.Sink, at(1<<63, 1), timeline)

	later := New(f.ClickHouse, Tables{EventLog: "event_log", DeadLetter: "event_dead_letter"}, f.source, OnTimeline(9))
	require.NoError(t, later.Insert(t.Context(), sample(1<<63, 2), 1, 2, f.attempt()))
	expect(f.Sink, at(1<<63, 2), 9)

	f.exec("OPTIMIZE TABLE event_log FINAL")
	expect(f.Sink, at(1<<63, 2), 9)
	expect(other, decode.Position{}, 0)
}

func TestCommitsAreTheLastOfEachSlotOfTheServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.insert(sample(1<<40, 3), 0, 3))
	require.NoError(t, f.insert(sample(7, 3), 0, 3))
	for _, s := range []Source{{f.source.SystemID, "other"}, {f.source.SystemID + "1", "elsewhere"}} {
		require.NoError(t, f.as(s).Insert(t.Context(), sample(1<<41, 1), 0, 1, f.attempt()))
	}
	commits, err := f.Commits(t.Context())
	require.NoError(t, err)
	assert.Equal(t, map[string]pglogrepl.LSN{f.source.Slot: 1 << 40, "other": 1 << 41}, commits)
}

// Where to go on must not cost a scan of a table that grows for years.
func TestPositionIsReadFromTheProjection(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.insert(sample(1, 1000), 0, 1000))
	for _, query := range []string{
		"SELECT " + lastRow + " FROM event_log WHERE source = {source:String}",
		"SELECT source, bitShiftRight(" + lastRow + ", 64) FROM event_log WHERE startsWith(source, {source:String}) GROUP BY source",
	} {
		rows, err := f.ClickHouse.Query(t.Context(), "EXPLAIN "+query+" SETTINGS optimize_use_projections = 1, force_optimize_projection = 1",
			named("source", f.source.String()))
		require.NoError(t, err)
		plan := ""
		for rows.Next() {
			var line string
			require.NoError(t, rows.Scan(&line))
			plan += line + "\n"
		}
		require.NoError(t, rows.Err())
		require.NoError(t, rows.Close())
		assert.Contains(t, plan, "p_position")
	}
}

// What a profile of a shared server may ask for: an insert stays one part, is written to its views, and is
// known by its own token, and no query is refused for the way in which it finds its rows.
func TestAProfileChangesNoInsertAndRefusesNoQuery(t *testing.T) {
	t.Parallel()
	engine := testenv.StartClickHouse(t, embedded.ClickHouseOptions{Profile: `
		<use_strict_insert_block_limits>1</use_strict_insert_block_limits> <max_insert_block_size>10</max_insert_block_size>
		<asterisk_include_virtual_columns>1</asterisk_include_virtual_columns> <insert_deduplication_token>x</insert_deduplication_token>
		<describe_compact_output>1</describe_compact_output> <describe_include_subcolumns>1</describe_include_subcolumns>
		<describe_include_virtual_columns>1</describe_include_virtual_columns>
		<merge_tree_coarse_index_granularity>1</merge_tree_coarse_index_granularity>
		<force_primary_key>1</force_primary_key> <force_index_by_date>1</force_index_by_date>
		<force_optimize_projection>1</force_optimize_projection> <force_optimize_projection_name>p_position</force_optimize_projection_name>
		<input_format_native_decode_types_in_binary_format>1</input_format_native_decode_types_in_binary_format>
		<show_create_query_identifier_quoting_rule>always</show_create_query_identifier_quoting_rule>
		<show_create_query_identifier_quoting_style>DoubleQuotes</show_create_query_identifier_quoting_style>
		<enforce_strict_identifier_format>1</enforce_strict_identifier_format> <deduplicate_insert_select>force_enable</deduplicate_insert_select>`})
	cfg := engine.Config("default")
	require.NoError(t, migrations.UpClickHouse(t.Context(), cfg, slog.New(slog.DiscardHandler)))
	conn, err := ours.Open(t.Context(), cfg)
	require.NoError(t, err)
	defer conn.Close()
	f := &fixture{Env: &testenv.Env{ClickHouse: conn, ClickHouseConfig: cfg}, t: t}
	f.Sink = f.as(Source{SystemID: "7000000000000000001", Slot: "a"})
	f.exec("CREATE TABLE copy AS event_log")
	another := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"asterisk_include_virtual_columns": 0})) // who has no such profile
	require.NoError(t, conn.Exec(another, "CREATE MATERIALIZED VIEW copies TO copy AS SELECT * FROM event_log"))
	require.NoError(t, f.CheckTables(t.Context()))
	require.NoError(t, f.insert(sample(1, 1000), 0, 1000))
	require.NoError(t, f.insert(sample(2, 1000), 0, 1000), "another token")
	require.NoError(t, f.CheckEngine(t.Context(), InsertBound(time.Minute)))
	for _, table := range []string{"event_log", "copy"} {
		assert.Equal(t, 2000, f.count(table))
		assert.Equal(t, 2, f.count("system.parts WHERE level = 0 AND table = '"+table+"'"))
	}
	definition, err := f.definition(t.Context())
	require.NoError(t, err)
	assert.Contains(t, definition, "PROJECTION p_position ", "as the streamer and its doctor read it")
	var token string
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT toString(getSetting('insert_deduplication_token'))").Scan(&token))
	assert.Empty(t, token, "of what has none")
	end, _, err := f.Position(t.Context())
	require.NoError(t, err)
	assert.Equal(t, at(2, 1000), end)
	there, err := f.PositionsIn(t.Context(), Range{After: at(1, 998), Through: at(1, 1000)})
	require.NoError(t, err)
	assert.Len(t, there, 2)
	missing, err := f.MissingEvents(t.Context(), []uuid.UUID{sample(1, 1).IDAt(0)})
	require.NoError(t, err)
	assert.Empty(t, missing)

	f.exec("ALTER TABLE event_log ADD CONSTRAINT even CHECK JSONExtractInt(event_context, 'n') % 2 = 0")
	rows, w := numbered(0, 1, 2), &blocks{f: f}
	require.NoError(t, f.Write(t.Context(), all(rows), w))
	assert.Equal(t, 2, w.inserts, "the row that is refused is found without writing")
	assert.Len(t, w.refused, 1)
	f.exec("DROP TABLE copy SYNC")
	failed, err := RefusingViews(t.Context(), conn, "event_log")
	require.NoError(t, err)
	require.NotNil(t, failed)
	assert.Equal(t, []string{"default.copies"}, failed.Views)
}
