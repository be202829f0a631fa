package sink

import (
	"context"
	"fmt"
	"regexp"
	"strings"
)

// filterStep is a line of EXPLAIN for something that leaves out rows.
var filterStep = regexp.MustCompile(`(?i)^\s*(row level filter|prewhere|filter)\b`)

// checkFilters refuses a user who sees some of the rows of a table of ours: what it does not see counts as not
// written, and would be written again. EXPLAIN shows row policies and additional filters to those, too,
// who may not list them. It shows nothing of a table without rows; every session asks again.
func (s *Sink) checkFilters(ctx context.Context, table string) error {
	rows, err := s.conn.Query(reading(ctx, 1), "EXPLAIN actions = 1 SELECT commit_lsn FROM "+table)
	if err != nil {
		return fmt.Errorf("explain a query of %s: %w", table, classify(err))
	}
	defer func() { _ = rows.Close() }()
	var filter string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return fmt.Errorf("explain a query of %s: %w", table, err)
		}
		if filterStep.MatchString(line) {
			filter = strings.TrimSpace(line)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("explain a query of %s: %w", table, classify(err))
	}
	if filter != "" {
		return refuseTable("the user does not see all rows of %s (EXPLAIN: %s), and the streamer must, to write each row once: "+
			"exempt it from the row policies of the table, and remove additional_table_filters from its profile", table, filter)
	}
	return nil
}

var (
	partitionWord = regexp.MustCompile("[A-Za-z_][A-Za-z0-9_]*\\(?|`[^`]*`")
	// constantColumns have one value in a block; a failover may come between two rows of one.
	constantColumns = map[string]bool{"ingested_at": true, "source": true}
)

// checkPartitionKey refuses a table in which a block may become several parts, which are not
// written as a whole.
func (s *Sink) checkPartitionKey(key string) error {
	for _, word := range partitionWord.FindAllString(key, -1) {
		if name := strings.Trim(word, "`"); !strings.HasSuffix(word, "(") && !constantColumns[name] {
			return refuseTable("table %s has the partition key %s, and an insert must be one part, which is written as a whole: the key may have "+
				"ingested_at and source alone; create the table with `streamer migrate up`, and others on it with materialized views", s.table, key)
		}
	}
	return nil
}
