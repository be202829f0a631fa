package migrations

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"strings"

	"diehard/shared/clickhouse"
)

// TextIndex is the name of the optional index of the words of event_context.
const TextIndex = "by_text"

// refuseTextIndex is asked before anything is changed.
func refuseTextIndex(ctx context.Context, cfg clickhouse.Config) error {
	if !cfg.TextIndex {
		return nil
	}
	conn, _, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	var version string
	var known, on bool
	err = conn.QueryRow(ctx, `SELECT version(), count() > 0, countIf(value = '1') > 0
		FROM system.settings WHERE name = 'enable_full_text_index'`).Scan(&version, &known, &on)
	switch {
	case err != nil:
		return fmt.Errorf("does ClickHouse have text indexes: %w", err)
	case !known:
		return fmt.Errorf("CLICKHOUSE_TEXT_INDEX=true: ClickHouse %s has no text index, 26.2 and newer have it: upgrade it, or unset CLICKHOUSE_TEXT_INDEX", version)
	case !on:
		return fmt.Errorf("CLICKHOUSE_TEXT_INDEX=true: text indexes are off in ClickHouse %s: set enable_full_text_index = 1 for the user if this is 26.2 or newer, "+
			"otherwise upgrade it, or unset CLICKHOUSE_TEXT_INDEX", version)
	}
	return nil
}

// addTextIndex adds it, unless the table has it. Parts that are there get it when they are merged.
func addTextIndex(ctx context.Context, db *sql.DB, cfg clickhouse.Config, names names, log *slog.Logger) error {
	var has, rows bool
	err := db.QueryRowContext(ctx, `SELECT any(position(create_table_query, ' INDEX `+TextIndex+` ') > 0), any(ifNull(total_rows, 1) > 0)
		FROM system.tables WHERE database = ? AND name = ?`, cfg.Database, cfg.EventLogTable).Scan(&has, &rows)
	if err != nil {
		return fmt.Errorf("look at the indexes of %s: %w", names.EventLog, err)
	}
	if has {
		return nil
	}
	if _, err = db.ExecContext(ctx, names.addTextIndex()); err != nil {
		return fmt.Errorf("add the text index to %s: %w", names.EventLog, err)
	}
	log.InfoContext(ctx, "text index added; merges build it", "table", cfg.EventLogTable)
	if rows {
		log.InfoContext(ctx, "rows that are there get the index when their parts are merged, which large parts never are; to build it for all of them now",
			"statement", names.buildTextIndex())
	}
	return nil
}

func (n names) addTextIndex() string {
	return n.alterEventLog() + " ADD INDEX IF NOT EXISTS " + TextIndex + " event_context TYPE text(tokenizer = splitByNonAlpha)"
}

func (n names) buildTextIndex() string { return n.alterEventLog() + " MATERIALIZE INDEX " + TextIndex }

func (n names) alterEventLog() string {
	return "ALTER TABLE " + strings.TrimSpace(n.EventLog+" "+n.OnCluster)
}
