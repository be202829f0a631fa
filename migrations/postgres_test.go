package migrations_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// columns lists "name type" of a table or view, in order.
func columns(t *testing.T, conn *pgx.Conn, relation string) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `SELECT attname || ' ' || format_type(atttypid, atttypmod)
		FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, relation)
	require.NoError(t, err)
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return list
}

func TestColumnsAreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	conn := connect(t, testenv.New(t).PostgresURL)
	assert.Equal(t, []string{
		"id uuid", "email text", "first_name text", "last_name text", "is_active boolean",
		"created_at timestamp with time zone", "updated_at timestamp with time zone", "email_key text",
	}, columns(t, conn, "public.users"))
	assert.Equal(t, []string{
		"id uuid", "event_type text", "event_date_time timestamp with time zone", "environment text",
		"event_context json", "metadata_version bigint", "trace_context text", "published_by text", "published_at timestamp with time zone",
	}, columns(t, conn, "public.outbox"))
	assert.Equal(t, []string{
		"slot_name name", "active boolean", "wal_status text", "restart_lsn pg_lsn", "confirmed_flush_lsn pg_lsn",
		"lag_bytes bigint", "lag text", "retained_bytes bigint", "safe_wal_bytes bigint",
		"inactive_since timestamp with time zone", "invalidation_reason text",
	}, columns(t, conn, "public.slot_lag"))
}

func TestPublicationSendsInsertsOnlyAndOfTheRoot(t *testing.T) {
	t.Parallel()
	conn := connect(t, testenv.New(t).PostgresURL)
	var insert, update, remove, truncate, viaRoot bool
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
		FROM pg_publication WHERE pubname = 'outbox_pub'`).Scan(&insert, &update, &remove, &truncate, &viaRoot))
	assert.Equal(t, []bool{true, false, false, false, true}, []bool{insert, update, remove, truncate, viaRoot})
	var table string
	require.NoError(t, conn.QueryRow(t.Context(),
		"SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = 'outbox_pub'").Scan(&table))
	assert.Equal(t, "public.outbox", table)
}

func TestSlotLagGrowsWithTheWAL(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	conn := connect(t, env.PostgresURL)
	_, err := conn.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
	require.NoError(t, err)
	before := slotLag(t, conn, env.Slot)
	_, err = conn.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) SELECT 't', '{}' FROM generate_series(1, 1000)")
	require.NoError(t, err)
	after := slotLag(t, conn, env.Slot)
	assert.Greater(t, after, before+50_000, "1000 rows are more than 50 kB of WAL")

	var active bool
	var status, pretty string
	var reason *string
	require.NoError(t, conn.QueryRow(t.Context(),
		"SELECT active, wal_status, lag, invalidation_reason FROM slot_lag WHERE slot_name = $1", env.Slot).
		Scan(&active, &status, &pretty, &reason))
	assert.False(t, active)
	assert.Equal(t, "reserved", status)
	assert.Regexp(t, `^\d+ (bytes|kB|MB|GB)$`, pretty)
	assert.Nil(t, reason)
}

func slotLag(t *testing.T, conn *pgx.Conn, slot string) int64 {
	t.Helper()
	var lag int64
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT lag_bytes FROM slot_lag WHERE slot_name = $1", slot).Scan(&lag))
	return lag
}

func TestSlotLagWorksInRecovery(t *testing.T) {
	t.Parallel()
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "app"})
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: engine.URL("app")}, slog.New(slog.DiscardHandler)))
	conn := connect(t, engine.URL("app"))
	var dir string
	require.NoError(t, conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&dir))
	_, err := conn.Exec(t.Context(), "SELECT pg_create_logical_replication_slot('lagging', 'pgoutput')")
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	require.NoError(t, engine.Stop(t.Context()))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o644))
	require.NoError(t, engine.Start(t.Context()))

	conn = connect(t, engine.URL("app"))
	var recovering bool
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT pg_is_in_recovery()").Scan(&recovering))
	require.True(t, recovering)
	assert.GreaterOrEqual(t, slotLag(t, conn, "lagging"), int64(0))
}

func TestEmailIsUniqueWithoutRegardToCase(t *testing.T) {
	t.Parallel()
	conn := connect(t, testenv.New(t).PostgresURL)
	const insert = "INSERT INTO users (email, first_name, last_name) VALUES ($1, 'A', 'B')"
	_, err := conn.Exec(t.Context(), insert, "Ann@Example.com")
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), insert, "ann@example.COM")
	requireCode(t, "23505", err)
}

func requireCode(t *testing.T, code string, err error) {
	t.Helper()
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	require.Equal(t, code, pgErr.Code, pgErr.Message)
}

func TestOutboxRefusesWhatIsNoEvent(t *testing.T) {
	t.Parallel()
	conn := connect(t, testenv.New(t).PostgresURL)
	const checkViolation, invalidText = "23514", "22P02"
	for values, code := range map[string]string{
		"('', '{}')":                           checkViolation,
		"(repeat('x', 256), '{}')":             checkViolation,
		"('t', '{\"a\":}')":                    invalidText,
		"('t', NULL)":                          checkViolation,
		"('t', to_json(repeat('x', 1048575)))": checkViolation,
	} {
		_, err := conn.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES "+values)
		requireCode(t, code, err)
	}
	_, err := conn.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES ('t', to_json(repeat('x', 1048574)))")
	assert.NoError(t, err, "1 MiB with the quotes is the largest")
}

func TestPartitionsAreMadeOnce(t *testing.T) {
	t.Parallel()
	conn := connect(t, testenv.New(t).PostgresURL)
	assert.Zero(t, createPartitions(t, conn, 7), "the migration made these")
	assert.Equal(t, 3, createPartitions(t, conn, 10))
	assert.Zero(t, createPartitions(t, conn, 10))

	var partition, today string
	require.NoError(t, conn.QueryRow(t.Context(), `INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')
		RETURNING tableoid::regclass::text, 'diehard_outbox_p' || to_char(published_at AT TIME ZONE 'UTC', 'YYYYMMDD')`).
		Scan(&partition, &today))
	assert.Equal(t, today, partition)
}

func createPartitions(t *testing.T, conn *pgx.Conn, days int) int {
	t.Helper()
	var made int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT outbox_create_partitions($1)", days).Scan(&made))
	return made
}

// Rows in the default partition were published already: they stay in their table, and
// every day gets its partition.
func TestPartitionsLeaveTheRowsOfTheDefaultAlone(t *testing.T) {
	t.Parallel()
	conn := connect(t, testenv.New(t).PostgresURL)
	late := time.Now().UTC().AddDate(0, 0, 9)
	const insert = "INSERT INTO outbox (event_type, event_context, published_at) VALUES ('t', '{}', $1) RETURNING tableoid::regclass::text"
	var partition string
	require.NoError(t, conn.QueryRow(t.Context(), insert, late).Scan(&partition))
	require.Equal(t, "diehard_outbox_default", partition)
	assert.Equal(t, 3, createPartitions(t, conn, 10))
	var rows int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM diehard_outbox_default").Scan(&rows))
	assert.Zero(t, rows, "its place was taken by an empty one")
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT partition FROM diehard_partitions WHERE state = 'detached'").Scan(&partition))
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM "+partition).Scan(&rows))
	assert.Equal(t, 1, rows)
	require.NoError(t, conn.QueryRow(t.Context(), insert, late).Scan(&partition))
	assert.Equal(t, "diehard_outbox_p"+late.Format("20060102"), partition)
}

func TestPublishEventStoresEveryField(t *testing.T) {
	t.Parallel()
	conn := connect(t, testenv.New(t).PostgresURL)
	_, err := conn.Exec(t.Context(), "SET search_path = pg_catalog")
	require.NoError(t, err, "the function does not depend on it")
	var id, stored string
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT public.publish_event('order_paid', '{"order": 42}', 'Staging', 3,
		'00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', '2026-01-02 03:04:05.000006+00')`).Scan(&id))
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT concat_ws('|', event_type, event_context, environment,
		metadata_version, trace_context, event_date_time AT TIME ZONE 'UTC') FROM public.outbox WHERE id = $1`, id).Scan(&stored))
	assert.Equal(t, `order_paid|{"order": 42}|Staging|3|00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01|2026-01-02 03:04:05.000006`, stored)

	require.NoError(t, conn.QueryRow(t.Context(), `SELECT public.publish_event('order_paid', '{}')`).Scan(&id))
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT concat_ws('|', environment, metadata_version, coalesce(trace_context, 'none'),
		clock_timestamp() - event_date_time < '1 minute') FROM public.outbox WHERE id = $1`, id).Scan(&stored))
	assert.Equal(t, "|1|none|t", stored)
}
