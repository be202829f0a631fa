package sink

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"

	"diehard/shared/failure"
)

// CheckTables refuses tables that are not ours. Call it before the first insert.
//
// Errors: failure.Fatal naming the table and what to change.
func (s *Sink) CheckTables(ctx context.Context) error {
	err := s.conn.QueryRow(reading(ctx, 0), "SELECT groupArray(name) FROM system.settings WHERE has({names:Array(String)}, name)",
		clickhouse.Named("names", slices.Collect(maps.Keys(NewerInsertSettings)))).Scan(&s.newer)
	if err != nil {
		return fmt.Errorf("read system.settings: %w", classify(err))
	}
	have, err := s.describe(ctx, s.table)
	if err != nil {
		return err
	}
	for _, c := range eventLog {
		if typ := have[c.name]; typ != c.kind {
			return refuseTable(
				"table %s is not ours: column %s is %q and must be %s; use another CLICKHOUSE_EVENT_LOG_TABLE_NAME and run `streamer migrate up`, or change the column",
				s.table, c.name, typ, c.kind)
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

func refuseTable(format string, args ...any) error {
	return failure.Wrap(failure.Fatal, failure.Because(failure.Schema, fmt.Errorf(format, args...)))
}
