package migrations_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// Callers choose what is in these tables. The catalog says which columns can be of any
// size: each refuses 2 MiB, also of the owner, and by a rule, not by what an index can hold.
func TestNoColumnThatCallersFillTakesAnySize(t *testing.T) {
	t.Parallel()
	conn := connect(t, testenv.New(t).PostgresURL)
	large := map[string]string{
		"text": "repeat('x', 2 << 20)", "json": `to_json(repeat('x', 2 << 20))`, "bytea": "convert_to(repeat('x', 2 << 20), 'UTF8')",
	}
	for table, required := range map[string]map[string]string{
		"outbox":                   {"event_type": "'t'", "event_context": "'{}'"},
		"users":                    {"email": "'a@example.com'"},
		"diehard_idempotency_keys": {"key": "sha256('')", "request": "sha256('')", "first_id": "gen_random_uuid()"},
		"diehard_published_keys":   {"key": "sha256('')", "event_id": "gen_random_uuid()", "content": "sha256('')"},
	} {
		rows, err := conn.Query(t.Context(), `SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
			WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attlen = -1`, table)
		require.NoError(t, err)
		columns := map[string]string{}
		var name, kind string
		_, err = pgx.ForEachRow(rows, []any{&name, &kind}, func() error { columns[name] = kind; return nil })
		require.NoError(t, err)
		require.NotEmpty(t, columns, table)
		for name, kind := range columns {
			require.Contains(t, large, kind, "%s.%s", table, name)
			names, values := name, large[kind]
			for other, value := range required {
				if other != name {
					names, values = names+", "+other, values+", "+value
				}
			}
			_, err := conn.Exec(t.Context(), fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", table, names, values))
			if assert.Error(t, err, "%s.%s", table, name) {
				requireCode(t, "23514", err) // check_violation
			}
		}
	}
}
