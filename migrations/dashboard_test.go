package migrations_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// eventsDashboard is Grafana's dashboard of event_log, as far as its queries go.
type eventsDashboard struct {
	Templating struct {
		List []struct{ Name, Type, Query string }
	}
	Panels []struct {
		ID         int
		Title      string
		Datasource struct{ Type, UID string }
		Targets    []struct{ RawSQL string }
	}
}

// render replaces what Grafana and its data source replace.
func render(query string, values map[string]string) string {
	query = regexp.MustCompile(`\$__conditionalAll\((.*?\)), \$(\w+)\)`).ReplaceAllStringFunc(query, func(macro string) string {
		found := regexp.MustCompile(`\$__conditionalAll\((.*?\)), \$(\w+)\)`).FindStringSubmatch(macro)
		if values[found[2]] == "" {
			return "1=1"
		}
		return found[1]
	})
	query = regexp.MustCompile(`\$__timeFilter\((\w+)\)`).ReplaceAllString(query, "$1 >= toDateTime(now() - 3600) AND $1 <= toDateTime(now() + 60)")
	query = regexp.MustCompile(`\$__timeInterval\((\w+)\)`).ReplaceAllString(query, "toStartOfInterval(toDateTime($1), INTERVAL 60 second)")
	for name, value := range values {
		query = strings.NewReplacer("${"+name+":sqlstring}", "'"+value+"'", "${"+name+"}", value).Replace(query)
	}
	return query
}

// A panel whose query fails or is about other columns is empty, which looks like calm.
func TestTheEventsDashboardNeedsEventLogAlone(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	require.NoError(t, env.ClickHouse.Exec(t.Context(), `INSERT INTO event_log (event_id, event_type, event_date_time, environment, trace_id, published_by)
		SELECT generateUUIDv4(), ['order_paid', 'payment_failed'][1 + number % 2], now64(6) - number, 'Production', 'abc', 'shop' FROM numbers(100)`))
	content, err := os.ReadFile("../docker/grafana/dashboards/events.json")
	require.NoError(t, err)
	var dashboard eventsDashboard
	require.NoError(t, json.Unmarshal(content, &dashboard))

	queries := map[string]string{}
	for _, v := range dashboard.Templating.List {
		if v.Type == "query" {
			queries["variable "+v.Name] = v.Query
		}
	}
	seen := map[int]bool{}
	for _, p := range dashboard.Panels {
		assert.False(t, seen[p.ID], "%s: id twice", p.Title)
		seen[p.ID] = true
		assert.Equal(t, "grafana-clickhouse-datasource", p.Datasource.Type, p.Title)
		assert.Equal(t, "${datasource}", p.Datasource.UID, p.Title)
		require.Len(t, p.Targets, 1, p.Title)
		queries[p.Title] = p.Targets[0].RawSQL
	}
	assert.Len(t, queries, 12)
	for name, query := range queries {
		for _, values := range []map[string]string{
			{"table": "event_log", "environment": "", "type": "", "trace": ""},
			{"table": env.ClickHouseConfig.Database + ".event_log", "environment": "Production", "type": "payment_failed", "trace": "abc"},
		} {
			sql := render(query, values)
			assert.NotContains(t, sql, "$", name)
			rows, err := env.ClickHouse.Query(t.Context(), sql)
			require.NoError(t, err, "%s: %s", name, sql)
			assert.True(t, rows.Next(), "%s is empty: %s", name, sql)
			require.NoError(t, rows.Err(), name)
			require.NoError(t, rows.Close())
		}
	}
}
