package ops_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// An alert on a metric that does not exist never fires, unnoticed. What else an alert
// must have is checked in shared/dev/policy/deployment.
func TestAlertsAreAboutMetricsThatExist(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../../docker/prometheus/alerts.yml")
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Rules []struct{ Alert, Record, Expr string }
		}
	}
	require.NoError(t, yaml.Unmarshal(content, &file))
	require.NotEmpty(t, file.Groups)

	w := watch(t, testenv.New(t))
	publish(t, w.env, 1)
	var have metrics
	for _, last := range []string{"slot_lost", "lag_seconds", "dead_letters_open", "outbox_days_ahead"} {
		await.True(t, func() bool {
			have = w.metrics()
			return have.families["diehard_streamer_"+last] != nil && w.progress.Confirmed() != 0
		}, "%s never appears", last)
	}
	await.True(t, func() bool { return w.status().Lag.Flushed.Seconds != nil }, "the age of the lag is never known")
	have = w.metrics()
	metric := regexp.MustCompile(`\bdiehard_streamer_\w+`)
	stage := regexp.MustCompile(`(diehard_streamer_\w+)\{\w+="(\w+)"\}`)
	seen := map[string]bool{}
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			for _, name := range metric.FindAllString(rule.Expr, -1) {
				seen[name] = true
				family := strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
				assert.Contains(t, have.families, family, rule.Alert+rule.Record)
			}
			for _, match := range stage.FindAllStringSubmatch(rule.Expr, -1) {
				have.find(match[1][len("diehard_streamer_"):], match[2])
			}
		}
	}
	assert.GreaterOrEqual(t, len(seen), 10)

	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	for name := range have.families {
		if short, ours := strings.CutPrefix(name, "diehard_streamer_"); ours {
			assert.Contains(t, string(readme), "`"+short+"`", "streamer/README.md lists every metric")
		}
	}
}
