package ops_test

import (
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// A panel about a metric that does not exist is empty, which looks like calm.
func TestDashboardIsAboutMetricsThatExist(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../../docker/grafana/dashboards/diehard.json")
	require.NoError(t, err)
	var dashboard struct {
		UID        string
		Templating struct {
			List []struct{ Name, Definition string }
		}
		Panels []struct {
			ID         int
			Title      string
			Datasource struct{ UID string }
			Targets    []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(content, &dashboard))
	source, err := os.ReadFile("../../docker/grafana/provisioning/datasources/prometheus.yml")
	require.NoError(t, err)
	variables := map[string]string{}
	for _, v := range dashboard.Templating.List {
		variables[v.Name] = v.Definition
	}
	require.Contains(t, variables, "datasource")
	require.Contains(t, string(source), "uid: "+dashboard.UID)

	w := watch(t, testenv.New(t))
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	publish(t, w.env, 1)
	await.True(t, func() bool { s := w.status(); return s.Lag.Flushed.Seconds != nil && s.Totals.Flushed == 1 }, "the row is never written")
	families := w.metrics().families
	// Of the api, by package telemetry/web.
	const requests = "http_request_duration_seconds"
	metric := regexp.MustCompile(`\b(?:diehard|http|process)_[a-z_]+`)
	seen := map[int]bool{}
	for _, panel := range dashboard.Panels {
		assert.False(t, seen[panel.ID], "%s: id twice", panel.Title)
		seen[panel.ID] = true
		assert.Equal(t, "${datasource}", panel.Datasource.UID, panel.Title)
		require.NotEmpty(t, panel.Targets, panel.Title)
		for _, target := range panel.Targets {
			names := metric.FindAllString(target.Expr, -1)
			assert.NotEmpty(t, names, panel.Title)
			for _, used := range regexp.MustCompile(`=~"\$(\w+)"`).FindAllStringSubmatch(target.Expr, -1) {
				assert.Contains(t, variables, used[1], panel.Title)
			}
			for _, name := range names {
				family := name
				for _, part := range []string{"_bucket", "_sum", "_count"} {
					family = strings.TrimSuffix(family, part)
				}
				assert.True(t, family == requests || families[family] != nil, "%s: there is no metric %s", panel.Title, family)
			}
		}
	}
	assert.Greater(t, len(seen), 10)
}
