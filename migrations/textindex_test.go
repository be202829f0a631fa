package migrations_test

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
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

// A server that has no text indexes looks like one that has them off, which nothing that
// the migrations send may change.
func TestAServerWithoutTextIndexesIsRefusedBeforeAnythingIsCreated(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	engine := testenv.StartClickHouse(t, embedded.ClickHouseOptions{Profile: `
		<enable_full_text_index>0</enable_full_text_index> <constraints><enable_full_text_index><const/></enable_full_text_index></constraints>`})
	conn, err := clickhouse.Open(t.Context(), engine.Config("default"))
	require.NoError(t, err)
	defer conn.Close()
	created := func() (names []string) {
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT arraySort(groupUniqArray(name)) FROM
			(SELECT name FROM system.databases UNION ALL SELECT name FROM system.tables WHERE database IN ('default', 'missing'))
			WHERE name NOT IN ('default', 'system', 'information_schema', 'INFORMATION_SCHEMA')`).Scan(&names))
		return names
	}
	pg, silent, set := postgres.Config{URL: env.PostgresURL}, slog.New(slog.DiscardHandler), migrations.Outbox("without_text", "")
	for _, database := range []string{"default", "missing"} {
		cfg := engine.Config(database)
		cfg.TextIndex = true
		for _, err := range []error{migrations.UpClickHouse(t.Context(), cfg, silent), migrations.Up(t.Context(), pg, set, cfg, silent)} {
			require.ErrorContains(t, err, "text indexes are off in ClickHouse 2")
			require.ErrorContains(t, err, "unset CLICKHOUSE_TEXT_INDEX")
		}
		assert.Empty(t, created())
		var schema bool
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT to_regnamespace('without_text') IS NOT NULL").Scan(&schema))
		assert.False(t, schema, "nor in PostgreSQL")
	}
	require.NoError(t, migrations.UpClickHouse(t.Context(), engine.Config("missing"), silent))
	assert.Contains(t, created(), "event_log", "they are needed for the text index alone")
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
	before := definition(t, env)
	require.NoError(t, migrations.UpClickHouse(t.Context(), env.ClickHouseConfig, slog.New(slog.DiscardHandler)))
	assert.Equal(t, before, definition(t, env))
}

// definition is how event_log was made.
func definition(t *testing.T, env *testenv.Env) (text string) {
	t.Helper()
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT create_table_query FROM system.tables WHERE database = ? AND name = 'event_log'",
		env.ClickHouseConfig.Database).Scan(&text))
	return text
}
