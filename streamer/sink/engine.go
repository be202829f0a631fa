package sink

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

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

// deadLetterEngine keeps the last version of a dead letter.
const deadLetterEngine = "ReplacingMergeTree"

// CheckEngine refuses an event_log that would lose or double rows after a lost answer, a table for
// dead letters that would lose them, and tables of which our user does not see every row. bound is
// InsertBound of the timeout of an insert.
//
// Errors: failure.Fatal naming the engine, the setting, the partition key or the filter.
func (s *Sink) CheckEngine(ctx context.Context, bound time.Duration) error {
	log, err := s.knowEngine(ctx)
	if err != nil {
		return err
	}
	if err := s.checkWindow(ctx, log, bound); err != nil {
		return err
	}
	if err := s.checkPartitionKey(log.partitionKey); err != nil {
		return err
	}
	dead, err := s.readEngine(ctx, s.tables.DeadLetter)
	if err != nil {
		return err
	}
	if !strings.HasSuffix(dead.engine, deadLetterEngine) {
		return refuseTable("table %s has the engine %s, which may lose dead letters: it must be %s, or its Replicated or Shared form; "+
			"create it with `streamer migrate up`", s.deadLetter, dead.engine, deadLetterEngine)
	}
	if err := s.checkQuorum(ctx); err != nil {
		return err
	}
	for _, table := range []string{s.table, s.deadLetter} {
		if err := s.checkFilters(ctx, table); err != nil {
			return err
		}
	}
	return nil
}

// engine is what system.tables says of a table's.
type engine struct{ engine, full, partitionKey string }

// knowEngine reads event_log's, and notes what Decide wants to know of it.
func (s *Sink) knowEngine(ctx context.Context) (engine, error) {
	e, err := s.readEngine(ctx, s.tables.EventLog)
	if err == nil {
		s.replicated, s.mayLag, s.knowsEngine = e.engine != "MergeTree", strings.HasPrefix(e.engine, "Replicated"), true
	}
	return e, err
}

func (s *Sink) readEngine(ctx context.Context, table string) (e engine, err error) {
	err = s.conn.QueryRow(reading(ctx, 0), "SELECT any(engine), any(engine_full), any(partition_key) FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
		clickhouse.Named("table", table)).Scan(&e.engine, &e.full, &e.partitionKey)
	if err != nil {
		return e, fmt.Errorf("read the engine of %s: %w", Quote(table), classify(err))
	}
	return e, nil
}

// checkWindow refuses an event_log that forgets tokens too soon, and notes how many it remembers.
func (s *Sink) checkWindow(ctx context.Context, e engine, bound time.Duration) error {
	window, ok := engines[e.engine]
	if !ok {
		return refuseTable("table %s has the engine %s, which cannot keep one row per event: it must be MergeTree, ReplicatedMergeTree "+
			"or SharedMergeTree; create it with `streamer migrate up`, and build other tables on it with materialized views", s.table, e.engine)
	}
	blocks, err := s.tableSetting(ctx, e, window)
	if err != nil {
		return err
	}
	s.window = int(min(blocks, 1<<20))
	if blocks < minWindow {
		return refuseTable("table %s remembers the tokens of %d inserts, and an insert whose answer is lost must not be written twice: "+
			"run ALTER TABLE %s MODIFY SETTING %s = 1000", s.table, blocks, s.table, window)
	}
	if e.engine == "MergeTree" {
		return nil
	}
	seconds, err := s.tableSetting(ctx, e, window+"_seconds")
	if err == nil && seconds < uint64(bound.Seconds()) {
		return refuseTable("table %s remembers the tokens of inserts for %d s, and one whose answer is lost may still be written for %.0f s: "+
			"run ALTER TABLE %s MODIFY SETTING %s_seconds = 604800", s.table, seconds, bound.Seconds(), s.table, window)
	}
	return err
}

// tableSetting is a setting of a MergeTree: the table's own, or the server's.
func (s *Sink) tableSetting(ctx context.Context, e engine, name string) (n uint64, err error) {
	if found := regexp.MustCompile(`\b` + name + ` = (\d+)`).FindStringSubmatch(e.full); found != nil {
		return strconv.ParseUint(found[1], 10, 64)
	}
	err = s.conn.QueryRow(reading(ctx, 0), "SELECT toUInt64OrZero(any(value)) FROM system.merge_tree_settings WHERE name = {name:String}",
		clickhouse.Named("name", name)).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("read %s of %s: %w", name, s.table, classify(err))
	}
	return n, nil
}

// checkQuorum refuses a quorum that is the profile's and not ours: what too few replicas have would be
// taken for written.
func (s *Sink) checkQuorum(ctx context.Context) error {
	if s.quorum || !s.mayLag {
		return nil
	}
	quorum, err := s.sessionQuorum(ctx)
	if err == nil && quorum != "0" && quorum != "1" {
		return refuseTable("the user's profile (SELECT currentProfiles()) has insert_quorum = %s, and CLICKHOUSE_INSERT_QUORUM has none: make them equal", quorum)
	}
	return err
}

func (s *Sink) sessionQuorum(ctx context.Context) (quorum string, err error) {
	if err = s.conn.QueryRow(reading(ctx, 0), "SELECT toString(getSetting('insert_quorum'))").Scan(&quorum); err != nil {
		return "", fmt.Errorf("read insert_quorum: %w", classify(err))
	}
	return quorum, nil
}

// Blocks is how many blocks of ours event_log may get while an insert is under way whose token must not be
// forgotten; the rest of the window is for other writers. It is known after CheckEngine.
func (s *Sink) Blocks() int { return s.window - min(s.window/2, minWindow) }
