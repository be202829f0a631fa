package sink

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"

	"diehard/shared/failure"
)

// CheckTables refuses tables that are not ours. Call it before the first insert.
//
// Errors: failure.Fatal naming the table and what to change.
func (s *Sink) CheckTables(ctx context.Context) error {
	var n uint64
	if err := s.conn.QueryRow(reading(ctx, 0), "SELECT count() FROM system.settings WHERE name = 'deduplicate_insert'").Scan(&n); err != nil {
		return fmt.Errorf("read system.settings: %w", classify(err))
	}
	s.knowsDeduplicateInsert = n > 0
	have, err := s.describe(ctx, s.table)
	if err != nil {
		return err
	}
	for _, c := range eventLog {
		if typ := have[c.name]; typ != c.types[0] {
			return refuseTable(
				"table %s is not ours: column %s is %q and must be %s; use another CLICKHOUSE_EVENT_LOG_TABLE_NAME and run `streamer migrate up`, or change the column",
				s.table, c.name, typ, c.types[0])
		}
	}
	if have, err = s.describe(ctx, s.deadLetter); err != nil {
		return err
	}
	for _, c := range deadLetter {
		if have[c.name] == "" {
			return refuseTable("table %s has no column %s: run `streamer migrate up`", s.deadLetter, c.name)
		}
	}
	return s.readTextIndexes(ctx)
}

func (s *Sink) readTextIndexes(ctx context.Context) error {
	definition, err := s.definition(ctx)
	if err != nil {
		return err
	}
	s.textIndexes = textIndexesOf(definition)
	return nil
}

// describe returns a table's columns and their types.
func (s *Sink) describe(ctx context.Context, table string) (map[string]string, error) {
	rows, err := s.conn.Query(ctx, "DESCRIBE TABLE "+table)
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", table, classify(err))
	}
	defer func() { _ = rows.Close() }()
	have := make(map[string]string)
	for rows.Next() {
		var name, typ string
		rest := make([]string, len(rows.Columns())-2)
		dest := []any{&name, &typ}
		for i := range rest {
			dest = append(dest, &rest[i])
		}
		if err := rows.Scan(dest...); err != nil {
			return nil, fmt.Errorf("describe %s: %w", table, err)
		}
		have[name] = typ
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("describe %s: %w", table, classify(err))
	}
	return have, nil
}

// minWindow is the least deduplication window: as many blocks may be written to the table
// between two attempts at one of ours.
const minWindow = 100

// engines keep one row per event: they write a block whole or not at all, and drop one
// whose token they remember. The value is the setting of how many they remember.
var engines = map[string]string{
	"MergeTree":           "non_replicated_deduplication_window",
	"ReplicatedMergeTree": "replicated_deduplication_window",
	"SharedMergeTree":     "replicated_deduplication_window",
}

// CheckEngine refuses an event_log that would lose or double rows after a lost answer, or of
// which our user does not see every row.
//
// Errors: failure.Fatal naming the engine, the setting, the partition key or the filter.
func (s *Sink) CheckEngine(ctx context.Context) error {
	engine, full, partitionKey, err := s.readEngine(ctx)
	if err != nil {
		return err
	}
	window, ok := engines[engine]
	if !ok {
		return refuseTable("table %s has the engine %s, which cannot keep one row per event: it must be MergeTree, ReplicatedMergeTree "+
			"or SharedMergeTree; create it with `streamer migrate up`, and build other tables on it with materialized views", s.table, engine)
	}
	found := regexp.MustCompile(`\b` + window + ` = (\d+)`).FindStringSubmatch(full)
	blocks := uint64(0)
	switch {
	case found != nil:
		blocks, _ = strconv.ParseUint(found[1], 10, 64) // digits
	case engine != "MergeTree":
		blocks = 1000 // the server's default, or less than that
	}
	s.window = int(min(blocks, 1<<20))
	if blocks < minWindow {
		return refuseTable("table %s remembers the tokens of %d inserts, and an insert whose answer is lost must not be written twice: "+
			"run ALTER TABLE %s MODIFY SETTING %s = 1000", s.table, blocks, s.table, window)
	}
	if err := s.checkPartitionKey(partitionKey); err != nil {
		return err
	}
	return s.checkFilters(ctx)
}

// readEngine reads event_log's engine, its settings and partition key, and notes what Decide wants to know.
func (s *Sink) readEngine(ctx context.Context) (engine, full, partitionKey string, err error) {
	err = s.conn.QueryRow(reading(ctx, 0), "SELECT any(engine), any(engine_full), any(partition_key) FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
		clickhouse.Named("table", s.tables.EventLog)).Scan(&engine, &full, &partitionKey)
	if err != nil {
		return "", "", "", fmt.Errorf("read the engine of %s: %w", s.table, classify(err))
	}
	s.replicated, s.mayLag, s.knowsEngine = engine != "MergeTree", strings.HasPrefix(engine, "Replicated"), true
	return engine, full, partitionKey, nil
}

// index is the definition of one in CREATE TABLE, up to its type.
var index = regexp.MustCompile("INDEX (\\w+|`[^`]+`) .*? TYPE (\\w+)")

// textIndexesOf lists the text indexes of a table, as the setting that leaves them to merges wants them.
func textIndexesOf(definition string) string {
	var names []string
	for _, found := range index.FindAllStringSubmatch(definition, -1) {
		if found[2] == "text" {
			names = append(names, found[1])
		}
	}
	return strings.Join(names, ",")
}

// Blocks is how many blocks of ours event_log may get while an insert is under way whose token must not be
// forgotten; the rest of the window is for other writers. It is known after CheckEngine.
func (s *Sink) Blocks() int { return s.window - min(s.window/2, minWindow) }

func refuseTable(format string, args ...any) error {
	return failure.Wrap(failure.Fatal, failure.Because(failure.Schema, fmt.Errorf(format, args...)))
}
