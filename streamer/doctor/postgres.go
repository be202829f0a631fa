package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"diehard/shared/event"
)

const (
	oldestPostgres = 140000
	failoverSlots  = 170000 // slots that follow a failover, and settings for them
)

// cure fills the gap of a slot that is gone or not to be trusted. The replay waits for the streamer.
const cure = "streamer slot drop && streamer slot create, start the streamer, streamer replay --from-table"

// alter is the statement that changes a setting of the server.
func alter(setting, value string) string {
	return fmt.Sprintf("ALTER SYSTEM SET %s = '%s'; SELECT pg_reload_conf();", setting, value)
}

var postgresChecks = []check[postgresFacts]{
	{"version", func(f *postgresFacts) verdict {
		if f.number < oldestPostgres {
			return broken(f.Version, "14 to 18", "upgrade PostgreSQL")
		}
		return ok(f.Version)
	}},
	{"role", func(f *postgresFacts) verdict {
		if f.Recovery {
			return broken("a standby in recovery", "the primary", "point DATABASE_URL to the primary")
		}
		return ok("primary")
	}},
	{"wal_level", func(f *postgresFacts) verdict {
		if level := f.settings["wal_level"]; level != "logical" {
			return broken(level, "logical", "ALTER SYSTEM SET wal_level = 'logical'; -- and restart PostgreSQL")
		}
		return ok("logical")
	}},
	{"durability", func(f *postgresFacts) verdict {
		if f.settings["fsync"] != "on" || f.settings["full_page_writes"] != "on" {
			return warn("fsync or full_page_writes is off", "both on, or a crash of the machine loses committed events",
				alter("fsync", "on")+" "+alter("full_page_writes", "on"))
		}
		return ok("fsync and full_page_writes are on")
	}},
	{"replication privilege", func(f *postgresFacts) verdict {
		if !f.mayReplicate {
			return broken(f.user+" may not replicate", "REPLICATION", fmt.Sprintf("ALTER ROLE %q REPLICATION;", f.user))
		}
		return ok(f.user + " may replicate")
	}},
	{"privileges", func(f *postgresFacts) verdict {
		if len(f.missing) > 0 {
			return broken(f.user+" lacks "+strings.Join(f.missing, ", "), "the role of the streamer",
				fmt.Sprintf("GRANT diehard_streamer TO %q;", f.user))
		}
		return ok(f.user + " has them all")
	}},
	{"schema public", func(f *postgresFacts) verdict {
		if f.openPublic {
			return warn("every user may create tables and functions in it", "closed, as it is made since PostgreSQL 15",
				"REVOKE CREATE ON SCHEMA public FROM PUBLIC;")
		}
		return ok("not open for everyone to create in")
	}},
	{"migrations", func(f *postgresFacts) verdict {
		switch {
		case f.migrationsErr != nil:
			return warn(f.migrationsErr.Error(), "readable", fmt.Sprintf("GRANT diehard_streamer TO %q;", f.user))
		case f.pendingMigration > 0:
			return broken(fmt.Sprintf("%d are missing", f.pendingMigration), "all applied", "streamer migrate up")
		}
		return ok("all applied")
	}},
	{"outbox columns", judgeColumns},
	{"publication", judgePublication},
	{"slot", judgeSlot},
	{"slot's publication", func(f *postgresFacts) verdict {
		if f.slotOtherPublic {
			return broken("the publication was dropped and made again since the slot was made: rows in between were not sent",
				"the publication that the slot was made for", cure)
		}
		return noMatter()
	}},
	{"bookmarks", judgeBookmarks},
	{"slots left", func(f *postgresFacts) verdict {
		return left(f.slots, f.settings["max_replication_slots"], "max_replication_slots")
	}},
	{"senders left", func(f *postgresFacts) verdict {
		return left(f.senders, f.settings["max_wal_senders"], "max_wal_senders")
	}},
	{"max_slot_wal_keep_size", func(f *postgresFacts) verdict {
		if f.settings["max_slot_wal_keep_size"] == "-1" {
			return warn("no limit: while the streamer is down the WAL grows until the disk is full", "a size that the disk can spare",
				alter("max_slot_wal_keep_size", "50GB"))
		}
		return ok(f.settings["max_slot_wal_keep_size"] + " MB")
	}},
	{"idle_replication_slot_timeout", func(f *postgresFacts) verdict {
		switch f.settings["idle_replication_slot_timeout"] {
		case "": // before PostgreSQL 18
			return noMatter()
		case "0":
			return ok("off")
		default:
			return warn("a slot that nobody reads is invalidated after "+f.settings["idle_replication_slot_timeout"]+" s",
				"off: an outage of the streamer must not cost the slot, nor a bookmark its place", alter("idle_replication_slot_timeout", "0"))
		}
	}},
	{"wal_sender_timeout", func(f *postgresFacts) verdict {
		if f.settings["wal_sender_timeout"] == "0" {
			return warn("off: PostgreSQL never drops a sender that is cut off; the streamer sets its own", "60s, for other replication clients",
				alter("wal_sender_timeout", "60s"))
		}
		return ok(f.settings["wal_sender_timeout"] + " ms; the streamer sets its own, REPLICATION_SENDER_TIMEOUT")
	}},
	{"failover", judgeFailover},
	{"partitions ahead", judgePartitions},
	{"outbox_default", func(f *postgresFacts) verdict {
		if f.outbox != nil && f.outbox.Default {
			return warn("holds rows, which no retention removes", "empty",
				"DELETE FROM public.outbox_default WHERE created_at < now() - interval '7 days'; -- once they are delivered")
		}
		return ok("empty")
	}},
	{"long transactions", func(f *postgresFacts) verdict {
		const long = time.Hour
		switch {
		case f.oldestPrepared > long:
			return warn("a prepared transaction is "+f.oldestPrepared.Round(time.Minute).String()+" old and keeps WAL",
				"none", "SELECT gid FROM pg_prepared_xacts; -- then COMMIT PREPARED or ROLLBACK PREPARED")
		case f.oldestTx > long:
			return warn("a transaction that writes is "+f.oldestTx.Round(time.Minute).String()+" old and keeps WAL",
				"none", "SELECT pid, query FROM pg_stat_activity ORDER BY xact_start; -- then pg_terminate_backend(pid)")
		}
		return ok("none")
	}},
	{"clock", func(f *postgresFacts) verdict { return judgeClock(f.skew) }},
}

// columnTypes are the types that each column of the outbox may have.
var columnTypes = map[string][]string{
	"id":               {"uuid"},
	"event_type":       {"text", "character varying"},
	"event_date_time":  {"timestamp with time zone", "timestamp without time zone"},
	"environment":      {"text", "character varying"},
	"event_context":    {"json", "jsonb", "text"},
	"metadata_version": {"bigint", "integer"},
	"trace_context":    {"text", "character varying"},
	"created_at":       {"timestamp with time zone"},
}

func judgeColumns(f *postgresFacts) verdict {
	if len(f.columns) == 0 {
		return broken("table public.outbox is missing", "there", "streamer migrate up")
	}
	var wrong []string
	for name, types := range columnTypes {
		switch have := f.columns[name]; {
		case have == "":
			wrong = append(wrong, name+" is missing")
		case !slices.Contains(types, have):
			wrong = append(wrong, fmt.Sprintf("%s is %s, not %s", name, have, strings.Join(types, " or ")))
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return broken(strings.Join(wrong, "; "), "as the migrations make them", "ALTER TABLE public.outbox …: give the columns their names and types back")
	}
	return ok(fmt.Sprintf("%d, as they should be", len(f.columns)))
}

func judgePublication(f *postgresFacts) verdict {
	switch {
	case f.Publication == "missing":
		return broken(f.publication+" is missing", "there, before the slot", fmt.Sprintf(
			"CREATE PUBLICATION %q FOR TABLE public.%s WITH (publish = 'insert', publish_via_partition_root = true);", f.publication, event.Table))
	case f.Publication != "ok":
		return broken(f.publication+" "+f.Publication, "inserts, via the partition root", fmt.Sprintf(
			"ALTER PUBLICATION %q SET (publish = 'insert', publish_via_partition_root = true);", f.publication))
	case len(f.tables) != 1 || f.tables[0] != "public."+event.Table:
		return broken(fmt.Sprintf("%s holds %s", f.publication, strings.Join(f.tables, ", ")), "public."+event.Table+" alone",
			fmt.Sprintf("ALTER PUBLICATION %q SET TABLE public.%s;", f.publication, event.Table))
	}
	return ok(f.publication + " sends inserts of the outbox")
}

func judgeSlot(f *postgresFacts) verdict {
	switch {
	case f.slot == nil && f.slotKnown:
		return broken(f.slotName+" is gone: events may be missing in ClickHouse", "there",
			cure)
	case f.slot == nil && f.slotDatabase != "":
		return broken(fmt.Sprintf("%s belongs to database %s", f.slotName, f.slotDatabase), "of database "+f.database,
			"choose another REPLICATION_SLOT")
	case f.slot == nil:
		return ok(f.slotName + " is made at the first start")
	case f.slotPlugin != "pgoutput":
		return broken(f.slotName+" uses "+f.slotPlugin, "pgoutput", "choose another REPLICATION_SLOT")
	case f.slot.Lost():
		return broken(strings.TrimSpace(fmt.Sprintf("%s is lost (%s)", f.slotName, f.slot.InvalidationReason)), "reserved", cure)
	case f.slot.WALStatus == "unreserved":
		return broken(f.slotName+" is about to be lost: the next checkpoint removes WAL that it needs", "reserved",
			"start the streamer now; "+alter("max_slot_wal_keep_size", "-1"))
	case !f.slot.Active:
		return warn(fmt.Sprintf("%s is not read by a streamer, and retains %d MB", f.slotName, f.slot.RetainedBytes>>20),
			"read", "streamer run")
	}
	return ok(fmt.Sprintf("%s is read, WAL %s", f.slotName, f.slot.WALStatus))
}

func judgeBookmarks(f *postgresFacts) verdict {
	var lost []string
	n, most := 0, int64(0)
	for _, s := range f.Slots {
		switch {
		case s.Bookmark == "":
		case s.Lost():
			lost = append(lost, s.Bookmark)
		default:
			n++
			most = max(most, s.RetainedBytes)
		}
	}
	switch {
	case len(lost) > 0:
		return warn("PostgreSQL has removed the WAL of "+strings.Join(lost, ", "), "moved forward before max_slot_wal_keep_size is reached",
			"streamer bookmark drop "+strings.Join(lost, " && streamer bookmark drop "))
	case n == 0:
		return noMatter()
	}
	return ok(fmt.Sprintf("%d, and the oldest keeps %d MB of WAL", n, most>>20))
}

// left warns when less than two of a pool remain: a streamer needs one, a replay another.
func left(used int, most, setting string) verdict {
	var n int
	if _, err := fmt.Sscan(most, &n); err != nil {
		return noMatter()
	}
	is := fmt.Sprintf("%d of %d used", used, n)
	if n-used < 2 {
		return warn(is, "two left, for a standby and a replay", fmt.Sprintf("ALTER SYSTEM SET %s = %d; -- and restart PostgreSQL", setting, n+10))
	}
	return ok(is)
}

func judgeFailover(f *postgresFacts) verdict {
	switch {
	case f.number < failoverSlots || f.slot == nil || f.standbys == 0:
		return noMatter()
	case f.slotFailover == nil || !*f.slotFailover:
		return warn("there are standbys, and the slot does not follow a failover", "failover = true",
			fmt.Sprintf("ALTER_REPLICATION_SLOT %s (FAILOVER true); -- on a replication connection, the streamer being stopped", f.slotName))
	case f.settings["synchronized_standby_slots"] == "":
		return warn("the streamer may get ahead of the standbys: after a failover ClickHouse would hold events that PostgreSQL has lost",
			"the physical slots of the standbys in synchronized_standby_slots", alter("synchronized_standby_slots", "name_of_the_standbys_slot"))
	}
	return ok("the slot follows, and waits for " + f.settings["synchronized_standby_slots"])
}

func judgePartitions(f *postgresFacts) verdict {
	switch {
	case f.outboxErr != nil:
		return broken(f.outboxErr.Error(), "readable", "streamer migrate up")
	case f.outbox.Ahead < 0:
		return warn("today has none; its rows go to outbox_default", "a week ahead", "SELECT public.outbox_create_partitions(7);")
	case f.outbox.Ahead < 2:
		return warn(fmt.Sprintf("%d days", f.outbox.Ahead), "a week; a running streamer makes them", "SELECT public.outbox_create_partitions(7);")
	}
	return ok(fmt.Sprintf("%d days", f.outbox.Ahead))
}

// maxSkew is how far clocks may be apart: times of commits and inserts are
// compared by people, and latencies by the streamer itself.
const maxSkew = time.Second

func judgeClock(skew time.Duration) verdict {
	is := fmt.Sprintf("%+d ms from the clock of this machine", skew.Milliseconds())
	if skew.Abs() > maxSkew {
		return warn(is, "within a second", "run an NTP client (chrony) on every machine")
	}
	return ok(is)
}
