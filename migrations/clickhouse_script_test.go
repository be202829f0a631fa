package migrations_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/testenv"
)

func cloudScript(t *testing.T, cfg clickhouse.Config) string {
	t.Helper()
	var script strings.Builder
	require.NoError(t, migrations.CloudScript(&script, cfg))
	return script.String()
}

// The script makes what `migrate up` makes, which has nothing to do then.
func TestTheScriptForCloudIsComplete(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	columns := tableColumns(t, env, "event_log")
	dead := tableColumns(t, env, "event_dead_letter")
	cfg := env.ClickHouseConfig
	cfg.Cluster, cfg.TextIndex = "ignored", true
	for _, table := range []string{"event_log_json", "event_log", "event_dead_letter", "event_log_migrations"} {
		require.NoError(t, env.ClickHouse.Exec(t.Context(), "DROP TABLE "+table+" SYNC"))
	}
	script := cloudScript(t, cfg)
	for range 2 { // it can be run again
		for statement := range strings.SplitSeq(script, ";\n") {
			lines := regexp.MustCompile(`(?m)^\s*--.*$`).ReplaceAllString(statement, "")
			if strings.TrimSpace(lines) != "" && !strings.Contains(lines, "GRANT ") { // the engine has no such user
				require.NoError(t, env.ClickHouse.Exec(t.Context(), lines), lines)
			}
		}
	}
	assert.Equal(t, columns, tableColumns(t, env, "event_log"))
	assert.Equal(t, dead, tableColumns(t, env, "event_dead_letter"))
	status, err := migrations.StatusClickHouse(t.Context(), env.ClickHouseConfig)
	require.NoError(t, err)
	for _, m := range status {
		assert.True(t, m.Applied(), m.Name)
	}
	made := definition(t, env)
	assert.Contains(t, made, "INDEX "+migrations.TextIndex+" ")
	cfg.Cluster = ""
	require.NoError(t, migrations.UpClickHouse(t.Context(), cfg, slog.New(slog.DiscardHandler)))
	assert.Equal(t, made, definition(t, env))
}

func TestTheScriptForCloudLeavesToTheServiceWhatIsItsOwn(t *testing.T) {
	t.Parallel()
	script := cloudScript(t, clickhouse.Config{
		Host: "h", Port: 9440, User: "stream", Database: "audit", EventLogTable: "event_log", DeadLetterTable: "event_dead_letter", Cluster: "c",
	})
	for _, not := range []string{"ON CLUSTER", "fsync", "Replicated", "Distributed", "non_replicated", "{{", "goose", migrations.TextIndex} {
		assert.NotContains(t, script, not)
	}
	assert.Contains(t, script, "GRANT SELECT, INSERT ON `audit`.* TO `stream`;")
	users, err := os.ReadFile(filepath.Join("..", "docker", "clickhouse", "users.xml"))
	require.NoError(t, err)
	streamer := string(users)[strings.Index(string(users), "<streamer>"):]
	for _, grant := range regexp.MustCompile(`<query>GRANT SELECT ON (system\.\w+)</query>`).FindAllStringSubmatch(streamer, -1) {
		assert.Contains(t, script, "GRANT SELECT ON "+grant[1]+" TO `stream`;", "as in the container")
	}
}
