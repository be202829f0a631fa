package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"diehard/streamer/decode"
	"diehard/streamer/replication"
)

const (
	oldestPostgres = 140000
	failoverSlots  = 170000 // slots that follow a failover, and settings for them
)

// recoverSlot replaces a slot that is missing or lost, and delivers what it missed.
const recoverSlot = "streamer slot drop && streamer slot create, start the streamer, streamer replay --from-table"

// alter is the statement that changes a server setting.
func alter(setting, value string) string {
	return fmt.Sprintf("ALTER SYSTEM SET %s = '%s'; SELECT pg_reload_conf(); -- on a managed server in its parameter group, flags or server parameters", setting, value)
}

var postgresChecks = []check[postgresFacts]{
	{"version", func(f *postgresFacts) result {
		if f.number < oldestPostgres {
			return failed(f.Version, "14 to 18", "upgrade PostgreSQL")
		}
		return ok(f.Version)
	}},
	{"server", func(f *postgresFacts) result {
		return f.precondition("server", "a primary, wal_level "+f.settings["wal_level"])
	}},
	{"durability", func(f *postgresFacts) result {
		if f.settings["fsync"] != "on" || f.settings["full_page_writes"] != "on" {
			return warn("fsync or full_page_writes is off", "both on, or a crash of the machine loses committed events",
				"ALTER SYSTEM SET fsync = on; ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();")
		}
		return ok("fsync and full_page_writes are on")
	}},
	{"replication connection", func(f *postgresFacts) result {
		if f.replicationErr != nil {
			return failed(f.replicationErr.Error(), "IDENTIFY_SYSTEM on a connection with replication=database", fmt.Sprintf(
				"ALTER ROLE %q REPLICATION; -- RDS, Aurora: GRANT rds_replication TO %q, and rds.iam_auth_for_replication = 1 for IAM tokens; and pg_hba.conf must let it in", f.user, f.user))
		}
		return ok(f.user + " may replicate")
	}},
	{"privileges", func(f *postgresFacts) result {
		if len(f.missing) > 0 {
			return failed(f.user+" lacks "+strings.Join(f.missing, ", "), "the role of the streamer",
				fmt.Sprintf("GRANT diehard_streamer TO %q;", f.user))
		}
		return ok(f.user + " has them all")
	}},
	{"outbox's schema", func(f *postgresFacts) result {
		if f.openPublic {
			return warn("every user may create tables and functions in it", "no CREATE for PUBLIC, the default since PostgreSQL 15",
				f.schema.SQL("REVOKE CREATE ON SCHEMA {outbox} FROM PUBLIC;"))
		}
		return ok("no CREATE for PUBLIC")
	}},
	{"messages", func(f *postgresFacts) result {
		if f.openMessages != "" {
			return failed("every login may write messages, which become events", "EXECUTE on pg_logical_emit_message for the owner of the publishing functions alone",
				f.openMessages+"-- as a superuser")
		}
		return ok("none are read, or producers alone write them")
	}},
	{"migrations", func(f *postgresFacts) result {
		switch {
		case f.migrationsErr != nil:
			return warn(f.migrationsErr.Error(), "readable", fmt.Sprintf("GRANT diehard_streamer TO %q;", f.user))
		case f.pendingMigration > 0:
			return failed(fmt.Sprintf("%d are missing", f.pendingMigration), "all applied", "streamer migrate up")
		}
		return ok("all applied")
	}},
	{"outbox", func(f *postgresFacts) result { return f.precondition("outbox", "a table") }},
	{"outbox columns", checkColumns},
	{"publication", func(f *postgresFacts) result {
		return f.precondition("publication", f.publication+" sends inserts of the outbox")
	}},
	{"slot", checkSlot},
	{"bookmarks", checkBookmarks},
	{"slots left", func(f *postgresFacts) result {
		return left(f.slots, f.settings["max_replication_slots"], "max_replication_slots")
	}},
	{"senders left", func(f *postgresFacts) result {
		return left(f.senders, f.settings["max_wal_senders"], "max_wal_senders")
	}},
	{"max_slot_wal_keep_size", func(f *postgresFacts) result {
		if f.settings["max_slot_wal_keep_size"] == "-1" {
			return warn("no limit: while the streamer is down the WAL grows until the disk is full", "a size that the disk can spare",
				alter("max_slot_wal_keep_size", "50GB"))
		}
		return ok(f.settings["max_slot_wal_keep_size"] + " MB")
	}},
	{"idle_replication_slot_timeout", func(f *postgresFacts) result {
		switch f.settings["idle_replication_slot_timeout"] {
		case "": // before PostgreSQL 18
			return notApplicable()
		case "0":
			return ok("off")
		default:
			return warn("an inactive slot is invalidated after "+f.settings["idle_replication_slot_timeout"]+" s",
				"0: an outage of the streamer must not invalidate the slot or a bookmark", alter("idle_replication_slot_timeout", "0"))
		}
	}},
	{"wal_sender_timeout", func(f *postgresFacts) result {
		if f.settings["wal_sender_timeout"] == "0" {
			return warn("0: PostgreSQL never ends a walsender whose client is gone; the streamer sets its own value", "60s, for other replication clients",
				alter("wal_sender_timeout", "60s"))
		}
		return ok(f.settings["wal_sender_timeout"] + " ms; the streamer sets its own value, REPLICATION_SENDER_TIMEOUT")
	}},
	{"failover", checkFailover},
	{"session settings", func(f *postgresFacts) result {
		if len(f.overridden) == 0 {
			return ok("none of the role or the database that matters")
		}
		return ok(strings.Join(f.overridden, ", ") + ": the streamer's sessions have their own")
	}},
	{"partitions ahead", checkPartitions},
	{"diehard_outbox_default", func(f *postgresFacts) result {
		if f.outbox != nil && f.outbox.Default {
			return warn("has rows, which retention does not remove", "empty",
				f.schema.SQL("DELETE FROM {outbox}.diehard_outbox_default WHERE published_at < now() - interval '7 days'; -- once they are delivered"))
		}
		return ok("empty")
	}},
	{"long transactions", func(f *postgresFacts) result {
		const long = time.Hour
		switch {
		case f.oldestPrepared > long:
			return warn("a prepared transaction is "+f.oldestPrepared.Round(time.Minute).String()+" old and retains WAL",
				"none", "SELECT gid FROM pg_prepared_xacts; -- then COMMIT PREPARED or ROLLBACK PREPARED")
		case f.oldestTx > long:
			return warn("a transaction that writes is "+f.oldestTx.Round(time.Minute).String()+" old and retains WAL",
				"none", "SELECT pid, query FROM pg_stat_activity ORDER BY xact_start; -- then pg_terminate_backend(pid)")
		}
		return ok("none")
	}},
	{"clock", func(f *postgresFacts) result { return checkClock(f.skew) }},
}

func checkColumns(f *postgresFacts) result {
	if len(f.columns) == 0 {
		return failed(f.schema.SQL("table {outbox}.outbox does not exist"), "it exists", "streamer migrate up")
	}
	types := decode.ColumnTypes()
	types["published_at"] = []uint32{pgtype.TimestamptzOID} // for retention and replay
	var wrong []string
	for name, oids := range types {
		switch have, exists := f.columns[name]; {
		case !exists:
			wrong = append(wrong, name+" is missing")
		case !slices.Contains(oids, have.oid):
			wrong = append(wrong, fmt.Sprintf("%s is %s, not %s", name, have.typ, typeNames(oids)))
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return failed(strings.Join(wrong, "; "), "as the migrations create them", f.schema.SQL("ALTER TABLE {outbox}.outbox …: restore the names and types of the columns"))
	}
	return ok(fmt.Sprintf("%d, as the migrations create them", len(f.columns)))
}

// typeNames names the types with these OIDs, which pgx knows.
func typeNames(oids []uint32) string {
	known := pgtype.NewMap()
	var names []string
	for _, oid := range oids {
		if t, ok := known.TypeForOID(oid); ok {
			names = append(names, t.Name)
		}
	}
	return strings.Join(names, " or ")
}

// expected are the preconditions of the streamer.
var expected = map[string]string{
	"server":      "a primary with wal_level = logical",
	"outbox":      "the table that the migrations create",
	"publication": "inserts of the outbox alone, via the partition root",
	"slot":        "a slot of this database with pgoutput, its WAL, and the publication it was created for",
}

// precondition is what the streamer itself checks at its start.
func (f *postgresFacts) precondition(name, actual string) result {
	err := f.unmet[name]
	if err == nil {
		return ok(actual)
	}
	problem, fix := err.Error(), "see above"
	if unmet, isUnmet := errors.AsType[*replication.Unmet](err); isUnmet {
		problem, fix = unmet.Problem, unmet.Fix
	}
	return failed(problem, expected[name], fix)
}

func checkSlot(f *postgresFacts) result {
	switch {
	case errors.Is(f.unmet["slot"], replication.ErrNoSlot):
		return ok(f.slotName + " is created at the first start")
	case f.unmet["slot"] != nil:
		return f.precondition("slot", "")
	case f.slot == nil:
		return notApplicable() // created a moment ago
	case f.slot.WALStatus == "unreserved":
		return failed(f.slotName+" will be lost: the next checkpoint removes WAL that it needs", "reserved",
			"start the streamer now; "+alter("max_slot_wal_keep_size", "-1"))
	case f.slot.Active && !replication.IsStreamer(f.slot.Holder):
		return failed(fmt.Sprintf("%s is active for %q, which is not a streamer and may confirm what is not in ClickHouse", f.slotName, f.slot.Holder),
			"a streamer alone streams from it", "end that session, then `streamer verify`")
	case !f.slot.Active:
		return warn(fmt.Sprintf("%s is inactive and retains %d MB of WAL", f.slotName, f.slot.RetainedBytes>>20),
			"active", "streamer run")
	}
	return ok(fmt.Sprintf("%s is active, WAL %s", f.slotName, f.slot.WALStatus))
}

func checkBookmarks(f *postgresFacts) result {
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
		return warn("PostgreSQL has removed the WAL of "+strings.Join(lost, ", "), "within max_slot_wal_keep_size",
			"streamer bookmark drop "+strings.Join(lost, " && streamer bookmark drop "))
	case n == 0:
		return notApplicable()
	}
	return ok(fmt.Sprintf("%d, the oldest retains %d MB of WAL", n, most>>20))
}

// left warns when fewer than two remain: a standby needs one, a replay another.
func left(used int, limit, setting string) result {
	var n int
	if _, err := fmt.Sscan(limit, &n); err != nil {
		return notApplicable()
	}
	actual := fmt.Sprintf("%d of %d used", used, n)
	if n-used < 2 {
		return warn(actual, "two unused, for a standby and a replay", fmt.Sprintf("ALTER SYSTEM SET %s = %d; -- and restart PostgreSQL", setting, n+10))
	}
	return ok(actual)
}

func checkFailover(f *postgresFacts) result {
	switch {
	case f.number < failoverSlots || f.slot == nil || f.standbys == 0:
		return notApplicable()
	case !f.slot.Failover:
		return warn("there are standbys, and the slot is not synchronized to them", "failover = true",
			fmt.Sprintf("ALTER_REPLICATION_SLOT %s (FAILOVER true); -- on a replication connection, the streamer being stopped", f.slotName))
	case f.settings["synchronized_standby_slots"] == "":
		return warn("the streamer can get ahead of the standbys: after a failover ClickHouse has events that PostgreSQL has lost",
			"the physical slots of the standbys in synchronized_standby_slots", alter("synchronized_standby_slots", "name_of_the_standbys_slot"))
	}
	return ok("the slot is synchronized, and waits for " + f.settings["synchronized_standby_slots"])
}

func checkPartitions(f *postgresFacts) result {
	switch {
	case f.outboxErr != nil:
		return failed(f.outboxErr.Error(), "readable", "streamer migrate up")
	case f.outbox.Ahead < 0:
		return warn("none for today; its rows go to diehard_outbox_default", "7 days ahead", f.schema.SQL("SELECT {outbox}.outbox_create_partitions(7);"))
	case f.outbox.Ahead < 2:
		return warn(fmt.Sprintf("%d days", f.outbox.Ahead), "7 days; a running streamer creates them", f.schema.SQL("SELECT {outbox}.outbox_create_partitions(7);"))
	}
	return ok(fmt.Sprintf("%d days", f.outbox.Ahead))
}

// maxSkew is the tolerated difference between clocks: latencies and lag in seconds
// are computed from timestamps of three machines.
const maxSkew = time.Second

func checkClock(skew time.Duration) result {
	actual := fmt.Sprintf("%+d ms from the clock of this machine", skew.Milliseconds())
	if skew.Abs() > maxSkew {
		return warn(actual, "within a second", "run an NTP client (chrony) on every machine")
	}
	return ok(actual)
}
