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

// answers are how many rows the README's questions have, in its order, of the events of recipeEvents.
var answers = []struct {
	question string
	rows     int
}{
	{"one event by its id", 1},
	{"its transaction", 5},
	{"its trace", 4},
	{"the latest", 100},
	{"an hour", 2},
	{"who published what", 4},
	{"one user", 2},
	{"one user, a week", 1},
	{"a number, by days", 1},
}

// recipeEvents are 60 events of two types at hour, 20 of a third type two days later, and 40 that are
// nine days older. Users have two or three events each; one of another user names u42.
const recipeEvents = `
INSERT INTO event_log (event_id, event_type, event_date_time, event_context, trace_id, published_by, source, commit_lsn, commit_seq)
WITH toStartOfHour(now64(6)) - INTERVAL 2 HOUR AS hour
SELECT toUUID(hex(sipHash128(number))), multiIf(number BETWEEN 60 AND 79, 'order_closed', number < 60 AND number % 2 = 1, 'order_failed', 'order_paid'),
	multiIf(number < 60, hour, number < 80, hour + INTERVAL 2 DAY, hour - INTERVAL 9 DAY) + toIntervalSecond(number % 60),
	concat('{"user_id":"u', toString(number % 50), '","referrer":"', if(number = 7, 'u42', ''), '","amount":1.5}'), lower(hex(sipHash128(intDiv(number, 4)))),
	['shop', 'till'][1 + number % 2], 's', intDiv(number, 5), number % 5 + 1
FROM numbers(120)`

// What the README shows is run as it stands there, and answers no more than was asked.
func TestTheREADMEsQuestionsAreAnswered(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), recipeEvents))
	var id, trace, at string
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), `SELECT toString(event_id), trace_id, toString(toStartOfHour(event_date_time))
		FROM event_log WHERE commit_lsn = 8 AND commit_seq = 3`).Scan(&id, &trace, &at))
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	questions := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.Len(t, questions, len(answers))
	for i, q := range questions {
		var found int
		rows, err := env.ClickHouse.Query(t.Context(), q[1], clickhouse.Named("id", id), clickhouse.Named("trace", trace), clickhouse.Named("at", at),
			clickhouse.Named("user", "u42"), clickhouse.Named("type", "order_paid"))
		require.NoError(t, err, q[1])
		for rows.Next() {
			found++
		}
		require.NoError(t, rows.Err())
		require.NoError(t, rows.Close())
		assert.Equal(t, answers[i].rows, found, "%s: %s", answers[i].question, q[1])
	}
}
