package migrations

import (
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
)

func TestClusterGetsReplicatedTables(t *testing.T) {
	t.Parallel()
	sql := renderAll(t, clickhouse.Config{
		Host: "127.0.0.1", Port: 9000,
		Database: "audit", EventLogTable: "event_log", DeadLetterTable: "event_dead_letter", Cluster: "main",
	})
	for _, part := range []string{
		"CREATE TABLE IF NOT EXISTS `audit`.`event_log` ON CLUSTER `main` (",
		"ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')",
		"CREATE VIEW IF NOT EXISTS `audit`.`event_log_json` ON CLUSTER `main` AS",
		"CREATE TABLE IF NOT EXISTS `audit`.`event_log_all` ON CLUSTER `main` AS `audit`.`event_log`",
		"ENGINE = Distributed('main', 'audit', 'event_log', cityHash64(event_id))",
		"ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}', retried_at)",
		"replicated_deduplication_window_seconds = 604800",
	} {
		assert.Contains(t, sql, part)
	}
	assert.NotContains(t, sql, "non_replicated_deduplication_window")
}

func TestOneNodeGetsPlainTables(t *testing.T) {
	t.Parallel()
	sql := renderAll(t, clickhouse.Config{Host: "127.0.0.1", Port: 9000, Database: "audit", EventLogTable: "log_1", DeadLetterTable: "dead"})
	assert.Contains(t, sql, "CREATE TABLE IF NOT EXISTS `audit`.`log_1`")
	assert.Contains(t, sql, "CREATE TABLE IF NOT EXISTS `audit`.`dead`")
	assert.NotContains(t, sql, "ON CLUSTER `")
	assert.NotContains(t, sql, "Replicated")
	assert.NotContains(t, sql, "Distributed")
}

// A database that replicates its tables wants neither ON CLUSTER nor paths.
func TestAReplicatedDatabaseGetsReplicatedTables(t *testing.T) {
	t.Parallel()
	for _, cluster := range []string{"", "main"} {
		n, err := namesOf(clickhouse.Config{
			Host: "127.0.0.1", Port: 9000, Database: "audit", EventLogTable: "event_log", DeadLetterTable: "event_dead_letter", Cluster: cluster,
		})
		require.NoError(t, err)
		n.replicatedDatabase()
		sql := render(t, n)
		assert.Contains(t, sql, "ENGINE = ReplicatedMergeTree\n")
		assert.Contains(t, sql, "ENGINE = ReplicatedReplacingMergeTree(retried_at)\n")
		assert.Contains(t, sql, "replicated_deduplication_window = 10000")
		for _, not := range []string{"ON CLUSTER `", "non_replicated", "Distributed", "/clickhouse/"} {
			assert.NotContains(t, sql, not)
		}
	}
}

func renderAll(t *testing.T, cfg clickhouse.Config) string {
	t.Helper()
	n, err := namesOf(cfg)
	require.NoError(t, err)
	return render(t, n)
}

func render(t *testing.T, n names) string {
	t.Helper()
	files, err := fs.Sub(clickhouseFiles, "clickhouse")
	require.NoError(t, err)
	names, err := fs.Glob(files, "*.sql")
	require.NoError(t, err)
	var all string
	for _, name := range names {
		sql, err := fs.ReadFile(rendered{files, n}, name)
		require.NoError(t, err)
		all += string(sql)
	}
	return all
}
