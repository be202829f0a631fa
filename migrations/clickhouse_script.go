package migrations

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/pressly/goose/v3"

	"diehard/shared/clickhouse"
)

// CloudScript writes the SQL for a ClickHouse Cloud service: the streamer's user, its grants and every
// migration, the rows of the version table included, so that [UpClickHouse] finds nothing to do. The
// service replicates tables and makes them durable by itself, so there is neither ON CLUSTER nor a
// setting of fsync; an engine without a prefix becomes a Shared one. The text index is in it if cfg
// wants one: whether the service has them shows when the script is run.
func CloudScript(w io.Writer, cfg clickhouse.Config) error {
	cfg.Cluster = ""
	n, err := namesOf(cfg)
	if err != nil {
		return err
	}
	n.Durability, n.DeduplicationWindow = "", replicatedWindow
	files, err := fs.Sub(clickhouseFiles, "clickhouse")
	if err != nil {
		return fmt.Errorf("embedded migrations: %w", err)
	}
	list, err := fs.Glob(files, "*.sql")
	if err != nil {
		return fmt.Errorf("embedded migrations: %w", err)
	}
	var script strings.Builder
	fmt.Fprintf(&script, "-- Die Hard: tables and grants for ClickHouse Cloud. Run it as an administrator, for example in the SQL console.\n"+
		"CREATE DATABASE IF NOT EXISTS %s;\n\n%s;\n%s\n", n.Database, createVersions(n.Versions), insertVersion(n.Versions, 0))
	for _, name := range list {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return fmt.Errorf("embedded migrations: %w", err)
		}
		text, err := fs.ReadFile(rendered{files, n}, name)
		if err != nil {
			return fmt.Errorf("embedded migrations: %w", err)
		}
		fmt.Fprintf(&script, "\n-- %s\n%s\n%s\n", path.Join("clickhouse", name), statements(string(text)), insertVersion(n.Versions, version))
	}
	if cfg.TextIndex {
		fmt.Fprintf(&script, "\n-- The words of event_context. It needs ClickHouse 26.2 or newer. Merges build it. For rows that are there:\n-- %s\n%s;\n",
			n.buildTextIndex(), n.addTextIndex())
	}
	script.WriteString("\n" + cloudGrants(n, cfg.User))
	_, err = io.WriteString(w, script.String())
	return err
}

// createVersions is the version table as goose makes it.
func createVersions(table string) string {
	return "CREATE TABLE IF NOT EXISTS " + table + ` (
    version_id Int64,
    is_applied UInt8,
    date Date DEFAULT now(),
    tstamp DateTime DEFAULT now()
)
ENGINE = MergeTree ORDER BY version_id`
}

func insertVersion(table string, version int64) string {
	return fmt.Sprintf("INSERT INTO %s (version_id, is_applied) SELECT %d, 1 WHERE %d NOT IN (SELECT version_id FROM %s);", table, version, version, table)
}

// streamerReads are the tables of the database system that the streamer and its doctor read.
var streamerReads = []string{"clusters", "columns", "databases", "disks", "merge_tree_settings", "parts", "processes", "replicas", "tables"}

func cloudGrants(n names, user string) string {
	var b strings.Builder
	name := quoted(user)
	fmt.Fprintf(&b, "-- The user of the streamer. Choose a password.\n-- CREATE USER IF NOT EXISTS %s IDENTIFIED BY '…';\n", name)
	fmt.Fprintf(&b, "GRANT SELECT, INSERT ON %s.* TO %s;\n", n.Database, name)
	for _, table := range streamerReads {
		fmt.Fprintf(&b, "GRANT SELECT ON system.%s TO %s;\n", table, name)
	}
	return b.String()
}
