package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

// contexts are JSON texts that something between producer and event log might
// be tempted to tidy up.
var contexts = map[string]string{
	"odd white space":      " {\t\"a\" :\n 1 ,\r\n\"b\":[ ] } ",
	"order and duplicates": `{"b":1,"a":2,"b":3}`,
	"beyond float64":       `{"id":9007199254740993,"n":123456789012345678901234567890,"f":1.50e+400}`,
	"unicode":              `{"name":"Zoë 北京 🎉","rtl":"שלום"}`,
	"escapes":              `{"zero":"\u0000","quote":"\"","slash":"\/","pair":"\ud83c\udf89","lone":"\ud800"}`,
	"not an object":        `null`,
	"empty string":         `""`,
	"array":                "[1,\n2]",
}

func TestEveryFieldArrivesAsPublished(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	before := time.Now().Add(-time.Second)
	for name, text := range contexts {
		e, err := event.New(json.RawMessage(text), event.WithType("checked "+name), event.WithEnvironment("Prüfung"),
			event.WithTime(time.Date(2031, 2, 3, 4, 5, 6, 789_012_000, time.UTC)), event.WithMetadataVersion(1<<62+1))
		require.NoError(t, err, name)
		require.NoError(t, event.Publish(t.Context(), env.Pool, e), name)
	}
	delivered(t, env)

	var system string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT system_identifier::text FROM pg_control_system()").Scan(&system))
	for name, text := range contexts {
		row := readRow(t, env, "checked "+name)
		assert.Equal(t, text, row.Context, name)
		assert.Equal(t, "Prüfung", row.Environment)
		assert.Equal(t, time.Date(2031, 2, 3, 4, 5, 6, 789_012_000, time.UTC), row.DateTime.UTC())
		assert.Equal(t, uint64(1<<62+1), row.MetadataVersion)
		assert.Equal(t, system+"/"+env.Slot, row.Source)
		assert.EqualValues(t, 1, row.CommitSeq)
		assert.EqualValues(t, 1, row.Timeline)
		assert.Positive(t, row.CommitLSN)
		assert.WithinRange(t, row.CommitTime, before, time.Now().Add(time.Second))
		assert.WithinRange(t, row.IngestedAt, row.CommitTime.Add(-time.Second), time.Now().Add(time.Second))
		var id uuid.UUID
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT id FROM outbox WHERE event_type = $1", "checked "+name).Scan(&id))
		assert.Equal(t, id, row.ID, name)
	}
}

// logRow is a row of event_log.
type logRow struct {
	ID              uuid.UUID `ch:"event_id"`
	Type            string    `ch:"event_type"`
	DateTime        time.Time `ch:"event_date_time"`
	Environment     string    `ch:"environment"`
	Context         string    `ch:"event_context"`
	MetadataVersion uint64    `ch:"metadata_version"`
	TraceID         string    `ch:"trace_id"`
	PublishedBy     string    `ch:"published_by"`
	Source          string    `ch:"source"`
	CommitLSN       uint64    `ch:"commit_lsn"`
	CommitSeq       uint32    `ch:"commit_seq"`
	Timeline        uint32    `ch:"timeline"`
	CommitTime      time.Time `ch:"commit_time"`
	IngestedAt      time.Time `ch:"ingested_at"`
}

// readRow returns the only row with an event type.
func readRow(t testing.TB, env *testenv.Env, eventType string) logRow {
	t.Helper()
	var rows []logRow
	query := "SELECT * FROM " + env.ClickHouseConfig.EventLogTable + " WHERE event_type = $1"
	require.NoError(t, env.ClickHouse.Select(t.Context(), &rows, query, eventType))
	require.Len(t, rows, 1, eventType)
	return rows[0]
}

func TestPostgreSQLDefaultsArrive(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	execute(t, env, `SELECT publish_event('from_sql', '{"b": 1, "a": 2}')`)
	delivered(t, env)
	row := readRow(t, env, "from_sql")
	assert.JSONEq(t, `{"a":2,"b":1}`, row.Context)
	assert.Empty(t, row.Environment)
	assert.EqualValues(t, 1, row.MetadataVersion)
	assert.WithinDuration(t, row.CommitTime, row.DateTime, await.Limit)
}

func TestRolledBackRowsNeverArrive(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	insert := func(kind string) string {
		return `INSERT INTO outbox (event_type, event_context) VALUES ('` + kind + `', '{}')`
	}
	for _, statements := range [][]string{
		{insert("gone"), "ROLLBACK"},
		{insert("kept"), "SAVEPOINT a", insert("gone"), "ROLLBACK TO a", insert("kept"), "COMMIT"},
		{"SAVEPOINT a", insert("kept"), "SAVEPOINT b", insert("gone"), "ROLLBACK TO b", "RELEASE a", "COMMIT"},
		{"SAVEPOINT a", insert("gone"), "SAVEPOINT b", insert("gone"), "RELEASE b", "ROLLBACK TO a", "COMMIT"},
		{insert("gone"), "SELECT 1/0", "COMMIT"},
		{insert("kept"), "COMMIT"},
	} {
		conn, err := env.Pool.Acquire(t.Context())
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "BEGIN")
		require.NoError(t, err)
		for _, statement := range statements {
			_, err := conn.Exec(t.Context(), statement)
			require.Equal(t, statement == "SELECT 1/0", err != nil, "%s: %v", statement, err)
		}
		conn.Release()
	}
	require.Equal(t, 4, delivered(t, env))
	assert.Zero(t, count(t, env, "count()", "WHERE event_type = 'gone'"))
}

func TestARowDeletedInItsOwnTransactionArrives(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	for _, statement := range []string{
		`INSERT INTO outbox (event_type, event_context) VALUES ('deleted', '{"kept":true}')`,
		`DELETE FROM outbox WHERE event_type = 'deleted'`,
	} {
		_, err := tx.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	require.NoError(t, tx.Commit(t.Context()))
	awaitRows(t, env, 1)
	assert.Equal(t, `{"kept":true}`, readRow(t, env, "deleted").Context)
}

func TestTheLargestEventPassesAndALargerOneIsRefused(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env)
	fill := func(n int) string { return `"` + strings.Repeat("x", n-2) + `"` }
	const insert = `INSERT INTO outbox (event_type, event_context) VALUES ('large', $1::text::json)`
	execute(t, env, insert, fill(event.MaxContextBytes))
	_, err := env.Pool.Exec(t.Context(), insert, fill(event.MaxContextBytes+1))
	require.ErrorContains(t, err, "event_context must have at most")
	awaitRows(t, env, 1)
	assert.Equal(t, fill(event.MaxContextBytes), readRow(t, env, "large").Context)
}
