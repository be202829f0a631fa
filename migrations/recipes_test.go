package migrations_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// What the README shows is run as it stands there.
func TestTheREADMEsQuestionsAreAnswered(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), `INSERT INTO event_log (event_id, event_type, event_date_time, event_context, trace_id, published_by, source, commit_lsn, commit_seq)
		SELECT toUUID(hex(sipHash128(number))), 'order_paid', now64(6) - INTERVAL 1 HOUR, concat('{"user_id":"u', toString(number), '","amount":1.5}'), lower(hex(sipHash128(number))),
			'shop', 's', number, 1 FROM numbers(100)`))
	var id, trace, at string
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), `SELECT toString(event_id), trace_id, toString(toStartOfHour(event_date_time))
		FROM event_log WHERE commit_lsn = 42`).Scan(&id, &trace, &at))
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	questions := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	assert.Len(t, questions, 9)
	for _, q := range questions {
		rows, err := env.ClickHouse.Query(t.Context(), q[1], clickhouse.Named("id", id), clickhouse.Named("trace", trace), clickhouse.Named("at", at),
			clickhouse.Named("user", "u42"), clickhouse.Named("type", "order_paid"))
		require.NoError(t, err, q[1])
		assert.True(t, rows.Next(), "no answer: %s", q[1])
		require.NoError(t, rows.Err())
		require.NoError(t, rows.Close())
	}
}
