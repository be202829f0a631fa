package event_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// The error names the outbox and its column, and has nothing of the day's partition or of the row.
func TestTheOutboxRefusesNull(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	for columns, refused := range map[string]string{
		"event_context) VALUES ('{}'":                                                         "event_type",
		"event_type) VALUES ('t'":                                                             "event_context",
		"event_type, event_context) VALUES (NULL, '{}'":                                       "event_type",
		"event_type, event_context) VALUES ('t', NULL":                                        "event_context",
		"event_type, event_context, id) VALUES ('t', '{}', NULL":                              "id",
		"event_type, event_context, event_date_time) VALUES ('t', '{}', NULL":                 "event_date_time",
		"event_type, event_context, id) VALUES ('t', '{}', uuid_in(repeat('0', 32)::cstring)": "id",
	} {
		for _, relation := range []string{"outbox", "diehard_events"} {
			_, err := pool.Exec(t.Context(), "INSERT INTO "+relation+" ("+columns+")")
			var violation *pgconn.PgError
			require.ErrorAs(t, err, &violation, columns)
			assert.Equal(t, []string{"23514", "public", "outbox", refused, "outbox_event", ""}, []string{
				violation.Code, violation.SchemaName, violation.TableName, violation.ColumnName, violation.ConstraintName, violation.Detail,
			}, columns)
			assert.Contains(t, violation.Message, "invalid event: ")
			assert.Contains(t, violation.Message, refused)
		}
	}
	_, err := pool.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context, published_by) VALUES ('t', '{}', NULL)")
	require.ErrorContains(t, err, "invalid event: published_by must")
}

// What the constraint takes for plain, so that it asks no further, keeps the rules; and an
// event as most are is plain.
func TestWhatIsPlainKeepsTheRules(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	const events = `
		FROM unnest(ARRAY['t', 'order paid', 'café', repeat('x', 255), repeat('x', 256), repeat('é', 128), '', ' ', ' t', 't ', E't\n', E'\t', U&'a\0085', U&'\007f', NULL]) AS a (event_type),
			unnest(ARRAY['', 'Prüfung ', repeat('x', 255), repeat('x', 256), E'a\nb', U&'\009f', NULL]) AS b (environment),
			unnest(ARRAY['{}', '[]', '-1', 'null', 'true', '"x"', ' "{}"', '"{\"a\": 1}"', to_json(repeat('x', 1048575))::text, '[' || repeat(' ', 1048575) || ']', NULL]::json[]) AS c (event_context),
			unnest(ARRAY['1900-01-01 00:00:00+00', '1899-12-31 23:59:59.999999+00', '2299-12-31 23:59:59.999999+00', '2300-01-01 00:00:00+00', 'infinity', '-infinity', NULL]::timestamptz[]) AS d (at),
			unnest(ARRAY[1, 0, -1, 9223372036854775807, NULL]::bigint[]) AS e (version),
			unnest(ARRAY['0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b', '00000000-0000-0000-0000-000000000000', NULL]::uuid[]) AS f (id)`
	var all, plain, wrong int
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*), count(*) FILTER (WHERE plain),
		count(*) FILTER (WHERE plain AND (problem IS NOT NULL OR id IS NULL OR at IS NULL OR version IS NULL OR environment IS NULL OR json_typeof(event_context) = 'string'))
		FROM (SELECT *, diehard_is_plain(id, event_type, at, environment, event_context, version, NULL, 'me') AS plain,
			diehard_problem(id, event_type, at, environment, event_context, version, NULL) AS problem `+events+") AS g").Scan(&all, &plain, &wrong))
	assert.Equal(t, []int{15 * 7 * 11 * 7 * 5 * 3, 0}, []int{all, wrong})
	assert.Greater(t, plain, 100)

	rows, err := pool.Query(t.Context(), `SELECT trace FROM (SELECT trace,
			trace ~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$' AS valid,
			diehard_problem(gen_random_uuid(), 't', now(), '', '{}', 1, trace) IS NULL AS kept,
			coalesce(diehard_is_plain(gen_random_uuid(), 't', now(), '', '{}', 1, trace, 'me'), false) AS plain
		FROM (SELECT overlay('00-0000000000000000000000000000000a-000000000000000b-01' PLACING c FROM n) FROM generate_series(1, 56) AS n,
				unnest(ARRAY['0', '1', 'f', 'F', 'g', '-', 'é', '', '00', ' ', E'\n', '%']) AS c
			UNION SELECT '00-' || repeat('0', a) || repeat('1', b) || '-' || repeat('0', c) || repeat('1', d) || '-01'
			FROM (VALUES (32, 0), (31, 1), (0, 32), (30, 1), (32, 1), (0, 0)) AS t (a, b), (VALUES (16, 0), (15, 1), (0, 16), (14, 1), (16, 1), (0, 0)) AS p (c, d)) AS x (trace)) AS y
		WHERE valid <> kept OR valid <> plain`)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var trace string
		require.NoError(t, rows.Scan(&trace))
		assert.Fail(t, "not the same rule", trace)
	}
	require.NoError(t, rows.Err())
}

// A context that comes compressed from another table is measured as the text that it is.
func TestACompressedContextIsNotSmall(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	_, err := pool.Exec(t.Context(), `CREATE TABLE draft (context json);
		INSERT INTO draft SELECT ('["' || repeat('a', n) || '"]')::json FROM unnest(ARRAY[1048572, 1048573]) AS n`)
	require.NoError(t, err)
	var stored int
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT max(pg_column_size(context)) FROM draft").Scan(&stored))
	assert.Less(t, stored, 20000)
	const publish = "INSERT INTO outbox (event_type, event_context) SELECT 't', context FROM draft WHERE octet_length(context::text) "
	_, err = pool.Exec(t.Context(), publish+"= 1048576")
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), publish+"> 1048576")
	require.ErrorContains(t, err, "event_context must have at most 1048576 bytes")
}
