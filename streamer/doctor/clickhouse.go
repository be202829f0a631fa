package doctor

import (
	"fmt"
	"strings"

	"github.com/jackc/pglogrepl"
)

// fewestFree is the share of a disk below which it is time to act.
const fewestFree = 0.10

var clickhouseChecks = []check[clickhouseFacts]{
	{"version", func(f *clickhouseFacts) verdict {
		if f.ClickHouse == nil {
			return noMatter()
		}
		var year, month int
		if _, err := fmt.Sscanf(f.Version, "%d.%d", &year, &month); err == nil && (year < 25 || year == 25 && month < 8) {
			return warn(f.Version, "25.8 or newer, which the client library supports", "upgrade ClickHouse")
		}
		return ok(f.Version)
	}},
	{"migrations", func(f *clickhouseFacts) verdict {
		if f.pendingMigration > 0 {
			return broken(fmt.Sprintf("%d are missing", f.pendingMigration), "all applied", "streamer migrate up")
		}
		return ok("all applied")
	}},
	{"tables", func(f *clickhouseFacts) verdict {
		for _, t := range []table{f.eventLog, f.deadLetter} {
			if !t.exists {
				return broken(t.name+" is missing", "there", "streamer migrate up")
			}
		}
		if f.tableErr != nil {
			return broken(f.tableErr.Error(), "as the migrations make it", "another CLICKHOUSE_EVENT_LOG_TABLE_NAME, or change the column back")
		}
		return ok(f.eventLog.name + " and " + f.deadLetter.name + ", columns as they should be")
	}},
	{"privileges", func(f *clickhouseFacts) verdict {
		var lacking []string
		for _, t := range []table{f.eventLog, f.deadLetter} {
			if t.exists && !t.mayInsert {
				lacking = append(lacking, t.name)
			}
		}
		switch {
		case f.readonly:
			return broken("the user may only read", "readonly = 0", "ALTER USER … SETTINGS readonly = 0")
		case len(lacking) > 0:
			return broken("SELECT or INSERT is missing on "+strings.Join(lacking, ", "), "both",
				"GRANT SELECT, INSERT ON "+strings.Join(lacking, ", ")+" TO …")
		}
		return ok("SELECT and INSERT on both tables")
	}},
	{"engine", func(f *clickhouseFacts) verdict {
		t := f.eventLog
		switch {
		case !t.exists:
			return noMatter()
		case t.engine != "MergeTree" && t.engine != "ReplicatedMergeTree" && t.engine != "SharedMergeTree":
			return warn(t.engine, "a plain MergeTree: other engines drop or fold rows, or split a batch", "streamer migrate up, with another table name")
		case !t.projection:
			return warn(t.engine+" without the projection p_resume: every start reads the whole table", "with it",
				fmt.Sprintf("ALTER TABLE %s ADD PROJECTION p_resume (SELECT source, max((commit_lsn, commit_seq)), "+
					"max((commit_lsn, commit_seq, timeline)) GROUP BY source); ALTER TABLE %s MATERIALIZE PROJECTION p_resume", t.name, t.name))
		}
		return ok(t.engine)
	}},
	{"one table a slot", func(f *clickhouseFacts) verdict {
		if f.further != "" {
			return warn("a streamer with this slot writes to "+f.further+": each table gets a part of the events", "one table for a slot",
				"give each streamer a REPLICATION_SLOT of its own, then streamer replay --from-table")
		}
		return ok("no other table gets events of this slot")
	}},
	{"durability", judgeDurability},
	{"deduplication window", judgeWindow},
	{"parts", func(f *clickhouseFacts) verdict {
		limit := f.eventLog.settings["parts_to_delay_insert"]
		if f.ClickHouse == nil || limit <= 0 {
			return noMatter()
		}
		is := fmt.Sprintf("%d in a partition; inserts are slowed down at %d", f.MostParts, limit)
		if f.MostParts > uint64(limit)/2 {
			return warn(is, "less than half of it", "OPTIMIZE TABLE "+f.eventLog.name+"; and a longer CLICKHOUSE_FLUSH_INTERVAL")
		}
		return ok(is)
	}},
	{"dead letters", func(f *clickhouseFacts) verdict {
		if f.ClickHouse == nil {
			return noMatter()
		}
		if n := f.DeadLetters.Open; n > 0 {
			return warn(fmt.Sprintf("%d rows wait, the last: %s", n, f.DeadLetters.Recent[0].Reason), "none",
				"streamer deadletter list; streamer deadletter retry --all after the cause is mended, or drop what can never be stored")
		}
		return ok("none")
	}},
	{"disk", func(f *clickhouseFacts) verdict {
		share := float64(f.free) / float64(f.total)
		is := fmt.Sprintf("%s: %.0f%% free (%d GB)", f.disk, 100*share, f.free>>30)
		if share < fewestFree {
			return warn(is, "at least 10% free", "add space, or drop old partitions: ALTER TABLE "+f.eventLog.name+" DROP PARTITION …")
		}
		return ok(is)
	}},
	{"clock", func(f *clickhouseFacts) verdict {
		if f.ClickHouse == nil {
			return noMatter()
		}
		return judgeClock(f.skew)
	}},
}

// judgeDurability wants an acknowledged insert to survive a power failure: on one
// node by fsync, on several by a quorum.
func judgeDurability(f *clickhouseFacts) verdict {
	t := f.eventLog
	switch {
	case !t.exists:
		return noMatter()
	case t.engine == "SharedMergeTree":
		return ok("kept by the object store")
	case t.settings["fsync_after_insert"] > 0 && t.settings["fsync_part_directory"] > 0:
		return ok("fsync after every insert")
	case t.engine == "ReplicatedMergeTree" && t.quorum >= 2:
		return ok(fmt.Sprintf("insert_quorum = %d", t.quorum))
	}
	return warn("no fsync after an insert: a power failure loses rows that PostgreSQL was told to forget", "fsync, or insert_quorum on a cluster",
		"ALTER TABLE "+t.name+" MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1")
}

func judgeWindow(f *clickhouseFacts) verdict {
	t := f.eventLog
	setting, fewest := "non_replicated_deduplication_window", int64(100)
	if t.engine == "ReplicatedMergeTree" {
		setting = "replicated_deduplication_window"
	}
	if !t.exists || t.engine == "SharedMergeTree" {
		return noMatter()
	}
	if n := t.settings[setting]; n < fewest {
		return warn(fmt.Sprintf("%s = %d: a retry rests on reading back alone", setting, n), fmt.Sprintf("%d or more", fewest),
			fmt.Sprintf("ALTER TABLE %s MODIFY SETTING %s = 1000", t.name, setting))
	}
	return ok(fmt.Sprintf("%d batches", t.settings[setting]))
}

// together are the facts of both ends.
type together struct {
	postgres   *postgresFacts
	clickhouse *clickhouseFacts
	walEnd     pglogrepl.LSN // read after all the others
}

var togetherChecks = []check[together]{
	{"history", func(f *together) verdict {
		if f.clickhouse.ClickHouse == nil {
			return noMatter()
		}
		landed, end := f.clickhouse.Landed(), f.walEnd
		if landed > end {
			return broken(fmt.Sprintf("ClickHouse holds events up to %s, and this server's WAL ends at %s: it was restored from a backup, or a standby was promoted too early", landed, end),
				"what has landed lies within the WAL",
				"check what PostgreSQL has lost, then streamer slot drop --for-good, set REPLICATION_SLOT to a new name, start the streamer, streamer replay --from-table")
		}
		if landed != 0 && f.postgres.slot == nil && !f.postgres.slotKnown {
			return broken("events of slot "+f.postgres.slotName+" are in ClickHouse, and the slot is gone", "the slot", cure)
		}
		return ok(fmt.Sprintf("landed up to %s of %s", landed, end))
	}},
}
