package migrations_test

import (
	"log/slog"
	"testing"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/testenv"
)

func TestTheTextIndexIsAddedOnDemand(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), `INSERT INTO event_log (event_type, event_date_time, event_context)
		SELECT 't', number, concat('{"user":"u', toString(number), '"}') FROM numbers(20000)`))
	cfg := env.ClickHouseConfig
	cfg.TextIndex = true
	for range 2 { // again changes nothing
		require.NoError(t, migrations.UpClickHouse(t.Context(), cfg, slog.New(slog.DiscardHandler)))
	}
	const query = `SELECT count() FROM event_log WHERE hasAllTokens(event_context, 'u777') AND JSONExtractString(event_context, 'user') = 'u777'`
	answer := func() (n uint64) {
		require.NoError(t, env.ClickHouse.QueryRow(t.Context(), query).Scan(&n))
		return n
	}
	assert.Equal(t, uint64(1), answer(), "parts without the index are read whole")
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "ALTER TABLE event_log MATERIALIZE INDEX "+migrations.TextIndex+" SETTINGS mutations_sync = 2"))
	assert.Equal(t, uint64(1), answer())
	assert.Contains(t, explain(t, env, query), "Name: "+migrations.TextIndex)
}

// It is refused before anything is created. A server that has no text indexes looks like one that has them off.
func TestAServerWithoutTextIndexesIsRefused(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	options, err := clickhouse.Options(env.ClickHouseConfig)
	require.NoError(t, err)
	db := driver.OpenDB(options)
	defer db.Close()
	require.NoError(t, migrations.RefuseTextIndex(t.Context(), db))
	options.Settings["enable_full_text_index"] = 0
	off := driver.OpenDB(options)
	defer off.Close()
	err = migrations.RefuseTextIndex(t.Context(), off)
	require.ErrorContains(t, err, "text indexes are off in ClickHouse 2")
	require.ErrorContains(t, err, "unset CLICKHOUSE_TEXT_INDEX")
}

// What operators add to event_log is theirs.
func TestIndexesOfTheUsersOwnStay(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for _, statement := range []string{
		"ALTER TABLE event_log ADD INDEX by_environment environment TYPE set(10)",
		"ALTER TABLE event_log ADD INDEX by_words lower(event_context) TYPE text(tokenizer = splitByNonAlpha)",
		"ALTER TABLE event_log ADD PROJECTION per_day (SELECT toDate(event_date_time), event_type, count() GROUP BY toDate(event_date_time), event_type)",
		"ALTER TABLE event_log DROP INDEX by_trace",
	} {
		require.NoError(t, env.ClickHouse.Exec(t.Context(), statement), statement)
	}
	definition := func() (text string) {
		require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT create_table_query FROM system.tables WHERE database = ? AND name = 'event_log'",
			env.ClickHouseConfig.Database).Scan(&text))
		return text
	}
	before := definition()
	require.NoError(t, migrations.UpClickHouse(t.Context(), env.ClickHouseConfig, slog.New(slog.DiscardHandler)))
	assert.Equal(t, before, definition())
}
