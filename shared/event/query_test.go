package event_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// A SELECT publishes the rows that are computed, as the README says.
func TestAQueryPublishesWhatIsComputed(t *testing.T) {
	t.Parallel()
	for _, query := range []struct {
		sql       string
		published int
	}{
		{"SELECT publish_event('t', '{}') FROM generate_series(1, 3)", 3},
		{"SELECT publish_event('t', '{}') FROM generate_series(1, 3) LIMIT 1", 1},
		{"SELECT count(*) FROM (SELECT publish_event('t', '{}') FROM generate_series(1, 3)) AS e", 3},
		{"DECLARE c CURSOR FOR SELECT publish_event('t', '{}') FROM generate_series(1, 3)", 0},
		{"DECLARE c CURSOR FOR SELECT publish_event('t', '{}') FROM generate_series(1, 3); FETCH 2 FROM c", 2},
		{"WITH e AS (SELECT publish_event('t', '{}')) SELECT 1", 0},
		{"WITH e AS MATERIALIZED (SELECT publish_event('t', '{}')) SELECT 1", 0},
		{"WITH e AS (SELECT publish_event('t', '{}')) SELECT * FROM e", 1},
		{"WITH e AS (INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')) SELECT 1", 1},
		{"WITH e AS (INSERT INTO diehard_events (event_type, event_context) VALUES ('t', '{}') RETURNING id) SELECT 1", 1},
	} {
		t.Run(query.sql, func(t *testing.T) {
			t.Parallel()
			pool := testenv.New(t).Pool
			require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				_, err := tx.Conn().PgConn().Exec(t.Context(), query.sql).ReadAll()
				return err
			}))
			assert.Len(t, stored(t, pool), query.published)
		})
	}
}

// In COPY's text format a backslash is an escape of COPY, in csv it is not; and the view
// takes no COPY.
func TestCopyReadsBackslashes(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	load := func(relation, format, line string) error {
		_, err := conn.Conn().PgConn().CopyFrom(t.Context(), strings.NewReader(line+"\n"),
			"COPY "+relation+" (event_type, event_context) FROM STDIN"+format)
		return err
	}
	require.NoError(t, load("outbox", "", "t\t"+`{"a": "\u00e9 \\u00e9"}`))
	require.NoError(t, load("outbox", " (FORMAT csv)", `t,"{""a"": ""\u00e9""}"`))
	require.ErrorContains(t, load("diehard_events", "", "t\t{}"), "cannot copy to view")
	events := stored(t, pool)
	require.Len(t, events, 2)
	assert.Equal(t, []string{`{"a": "u00e9 \u00e9"}`, `{"a": "\u00e9"}`}, []string{string(events[0].Context), string(events[1].Context)})
}
