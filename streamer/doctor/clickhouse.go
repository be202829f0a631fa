package doctor

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// minFree is the fraction of free disk space below which doctor warns.
const minFree = 0.10

var clickhouseChecks = []check[clickhouseFacts]{
	{"version", func(f *clickhouseFacts) result {
		if f.ClickHouse == nil {
			return notApplicable()
		}
		var year, month int
		if _, err := fmt.Sscanf(f.Version, "%d.%d", &year, &month); err == nil && (year < 25 || year == 25 && month < 8) {
			return warn(f.Version, "25.8 or newer, which the client library supports", "upgrade ClickHouse")
		}
		return ok(f.Version)
	}},
	{"migrations", func(f *clickhouseFacts) result {
		if f.pendingMigration > 0 {
			return failed(fmt.Sprintf("%d are missing", f.pendingMigration), "all applied", "streamer migrate up")
		}
		return ok("all applied")
	}},
	{"tables", func(f *clickhouseFacts) result {
		for _, t := range []table{f.eventLog, f.deadLetter} {
			if !t.exists {
				return failed(t.name+" does not exist", "it exists", "streamer migrate up")
			}
		}
		if f.tableErr != nil {
			return failed(f.tableErr.Error(), "as the migrations create it", "another CLICKHOUSE_EVENT_LOG_TABLE_NAME, or change the column back")
		}
		return ok(f.eventLog.name + " and " + f.deadLetter.name + ", columns as the migrations create them")
	}},
	{"privileges", func(f *clickhouseFacts) result {
		var lacking []string
		for _, t := range []table{f.eventLog, f.deadLetter} {
			if t.exists && !t.mayInsert {
				lacking = append(lacking, t.name)
			}
		}
		switch {
		case f.readonly:
			return failed("the user is read-only", "readonly = 0", "ALTER USER … SETTINGS readonly = 0")
		case len(lacking) > 0:
			return failed("SELECT or INSERT is missing on "+strings.Join(lacking, ", "), "both",
				"GRANT SELECT, INSERT ON "+strings.Join(lacking, ", ")+" TO …")
		}
		return ok("SELECT and INSERT on both tables")
	}},
	{"engine", func(f *clickhouseFacts) result {
		t := f.eventLog
		switch {
		case !t.exists:
			return notApplicable()
		case f.engineErr != nil:
			return failed(f.engineErr.Error(), "tables that keep one row per event", "what the message says; or streamer migrate up, with another CLICKHOUSE_EVENT_LOG_TABLE_NAME")
		case !t.projection:
			return warn(t.engine+" without the projection p_position: every start reads the whole table", "the projection exists",
				fmt.Sprintf("ALTER TABLE %s ADD PROJECTION p_position (%s); ALTER TABLE %s MATERIALIZE PROJECTION p_position", t.name, sink.PositionProjection, t.name))
		}
		return ok(t.engine)
	}},
	{"one table per slot", func(f *clickhouseFacts) result {
		if f.further != "" {
			return warn("a streamer with this slot writes to "+f.further+": each table gets some of the events", "one table per slot",
				"set a different REPLICATION_SLOT for each streamer, then streamer replay --from-table")
		}
		return ok("no other table has events of this slot")
	}},
	{"durability", checkDurability},
	{"deduplication window", checkWindow},
	{"parts", func(f *clickhouseFacts) result {
		limit := f.eventLog.settings["parts_to_delay_insert"]
		if f.ClickHouse == nil || limit <= 0 {
			return notApplicable()
		}
		actual := fmt.Sprintf("%d in one partition; inserts are delayed at %d", f.MostParts, limit)
		if f.MostParts > uint64(limit)/2 {
			return warn(actual, "less than half of it", "OPTIMIZE TABLE "+f.eventLog.name+"; and a longer CLICKHOUSE_FLUSH_INTERVAL")
		}
		return ok(actual)
	}},
	{"dead letters", func(f *clickhouseFacts) result {
		if f.ClickHouse == nil {
			return notApplicable()
		}
		if n := f.DeadLetters.Open; n > 0 {
			return warn(fmt.Sprintf("%d open, the last: %s", n, f.DeadLetters.Recent[0].Reason), "none",
				"streamer deadletter list; streamer deadletter retry --all after the cause is fixed, or deadletter drop for rows that can never be stored")
		}
		return ok("none")
	}},
	{"views", func(f *clickhouseFacts) result {
		switch {
		case f.ClickHouse == nil:
			return notApplicable()
		case f.Views() != nil:
			return warn(f.Views().Error(), "every view on our tables can be written to: events are written without this one",
				"create the table that it writes to again, or DROP VIEW; then fill it from event_log")
		}
		return ok("no materialized view refuses inserts")
	}},
	{"encoding", func(f *clickhouseFacts) result {
		switch {
		case f.ClickHouse == nil:
			return notApplicable()
		case f.doubleEncoded > 0:
			return warn(fmt.Sprintf("%d contexts of the last hour are JSON strings that hold JSON, of the types %s", f.doubleEncoded, f.doubleEncodedTypes),
				"none: event_log_json shows them as {}", "encode them once where they are published; to refuse them: "+
					"ALTER DATABASE … SET diehard.refuse_double_encoding = on")
		}
		return ok("no context of the last hour is JSON encoded twice")
	}},
	{"disk", func(f *clickhouseFacts) result {
		share := float64(f.free) / float64(f.total)
		actual := fmt.Sprintf("%s: %.0f%% free (%d GB)", f.disk, 100*share, f.free>>30)
		if share < minFree {
			return warn(actual, "at least 10% free", "add space, or drop old partitions: ALTER TABLE "+f.eventLog.name+" DROP PARTITION …")
		}
		return ok(actual)
	}},
	{"clock", func(f *clickhouseFacts) result {
		if f.ClickHouse == nil {
			return notApplicable()
		}
		return checkClock(f.skew)
	}},
}

// checkDurability requires that an acknowledged insert survives a power failure: by
// fsync on one node, by a quorum on several.
func checkDurability(f *clickhouseFacts) result {
	t := f.eventLog
	switch {
	case !t.exists:
		return notApplicable()
	case t.engine == "SharedMergeTree":
		return ok("durable in the object store")
	case t.settings["fsync_after_insert"] > 0 && t.settings["fsync_part_directory"] > 0:
		return ok("fsync after every insert")
	case t.engine == "ReplicatedMergeTree" && t.quorum >= 2:
		return ok(fmt.Sprintf("insert_quorum = %d", t.quorum))
	}
	return warn("no fsync after an insert: a power failure loses rows that are confirmed to PostgreSQL", "fsync, or insert_quorum on a cluster",
		"ALTER TABLE "+t.name+" MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1")
}

func checkWindow(f *clickhouseFacts) result {
	t := f.eventLog
	setting, fewest := "non_replicated_deduplication_window", int64(100)
	if t.engine == "ReplicatedMergeTree" {
		setting = "replicated_deduplication_window"
	}
	if !t.exists || t.engine == "SharedMergeTree" {
		return notApplicable()
	}
	if n := t.settings[setting]; n < fewest {
		return failed(fmt.Sprintf("%s = %d: retried inserts are not deduplicated", setting, n), fmt.Sprintf("%d or more", fewest),
			fmt.Sprintf("ALTER TABLE %s MODIFY SETTING %s = 1000", t.name, setting))
	}
	return ok(fmt.Sprintf("%d batches", t.settings[setting]))
}

// both are the facts of both databases.
type both struct {
	postgres   *postgresFacts
	clickhouse *clickhouseFacts
	walEnd     pglogrepl.LSN // read after everything else
}

var bothChecks = []check[both]{
	{"history", func(f *both) result {
		if f.clickhouse.ClickHouse == nil {
			return notApplicable()
		}
		written, end := f.clickhouse.LastLSN(), f.walEnd
		if written > end {
			return failed(fmt.Sprintf("ClickHouse holds events up to %s, and this server's WAL ends at %s: it was restored from a backup, or a standby was promoted too early", written, end),
				"every written event lies within the WAL",
				"check which events PostgreSQL has lost, then streamer slot drop --forget, set REPLICATION_SLOT to a new name, start the streamer, streamer replay --from-table")
		}
		if written != 0 && errors.Is(f.postgres.unmet["slot"], replication.ErrNoSlot) {
			return failed("events of slot "+f.postgres.slotName+" are in ClickHouse, and the slot does not exist", "the slot exists", recoverSlot)
		}
		if others := f.clickhouse.otherServers; written == 0 && len(others) > 0 {
			return warn("event_log has events of slot "+f.postgres.slotName+" from another PostgreSQL server ("+strings.Join(others, ", ")+"), and none from this one", "events of this server",
				"if the data of that server were lost, restore PostgreSQL from a backup; if this one was made from it on purpose, start the streamer, then streamer replay --from-table")
		}
		return ok(fmt.Sprintf("written up to %s of %s", written, end))
	}},
}
