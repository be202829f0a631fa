package replication

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Warning is a condition under which the streamer runs, and which harms something or will.
type Warning struct{ Name, Problem, Expected, Fix string }

// facts are what warnings are made of.
type facts struct {
	syncStandbys string   // synchronous_standby_names
	waitsFor     []string // slots of synchronized_standby_slots that are missing or inactive
	hidden       []string // tables of the outbox's schema whose rows policies hide from us
	readOnly     []string // producers whose sessions are read-only by default
	prepared     []string // transactions that hold the creation of a slot back
	subscribed   bool     // a subscription writes the outbox
}

// Settings and slots that a version does not know are empty. A table's policies are those
// that row_security_active would apply, whatever the session says.
const factsQuery = `
	SELECT current_setting('synchronous_standby_names'),
	       ` + missingStandbys + `,
	       ARRAY (SELECT c.relname::text FROM pg_catalog.pg_class c
	              WHERE c.relnamespace = to_regnamespace($1) AND c.relrowsecurity AND (c.relname = 'outbox' OR starts_with(c.relname, 'diehard_'))
	                AND NOT (SELECT r.rolbypassrls OR r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
	                AND (c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE')) ORDER BY c.relname),
	       ARRAY (SELECT coalesce('role ' || r.rolname, 'all roles') || coalesce(' in database ' || d.datname, '')
	              FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
	              WHERE (s.setdatabase = 0 OR d.datname = current_database())
	                AND (s.setrole = 0 OR has_any_column_privilege(s.setrole, to_regclass($3), 'INSERT'))
	                AND EXISTS (SELECT FROM unnest(s.setconfig) AS c WHERE c IN ('default_transaction_read_only=on', 'default_transaction_read_only=true'))
	              UNION ALL SELECT 'the server' FROM pg_catalog.pg_settings
	              WHERE name = 'default_transaction_read_only' AND reset_val = 'on' AND source NOT IN ('client', 'user', 'database', 'database user', 'session')),
	       CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $2 AND confirmed_flush_lsn IS NOT NULL) THEN '{}'
	            ELSE ARRAY (SELECT gid FROM pg_catalog.pg_prepared_xacts ORDER BY prepared) END,
	       EXISTS (SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid IN
	              (SELECT i.relid FROM pg_catalog.pg_partition_tree(to_regclass($3)) AS i))`

// Warnings lists what harms although all preconditions hold. They are logged when a
// streamer starts, and reported by doctor.
func (c *Control) Warnings(ctx context.Context) ([]Warning, error) {
	var f facts
	err := c.conn.QueryRow(ctx, factsQuery, quoteIdent(c.schema.Name()), c.slot, c.table()).
		Scan(&f.syncStandbys, &f.waitsFor, &f.hidden, &f.readOnly, &f.prepared, &f.subscribed)
	if err != nil {
		return nil, classify(fmt.Errorf("look for what may harm: %w", err))
	}
	return f.warnings(c), nil
}

func (f facts) warnings(c *Control) []Warning {
	var all []Warning
	add := func(when bool, w Warning) {
		if when {
			all = append(all, w)
		}
	}
	add(namesEveryStandby(f.syncStandbys), Warning{
		"synchronous_standby_names", "synchronous_standby_names = " + f.syncStandbys + " makes the streamer a synchronous standby: commits of producers may wait until ClickHouse has their events",
		"the names of the standbys", "ALTER SYSTEM SET synchronous_standby_names = 'names of the standbys'; SELECT pg_reload_conf();",
	})
	add(len(f.waitsFor) > 0, Warning{
		"synchronized_standby_slots", "synchronized_standby_slots names " + strings.Join(f.waitsFor, ", ") + ", which is missing or inactive: PostgreSQL delivers nothing until that standby is back",
		"slots of standbys that are connected", "start the standby, or take it out: ALTER SYSTEM SET synchronized_standby_slots = ''; SELECT pg_reload_conf();",
	})
	add(len(f.hidden) > 0, Warning{
		"row level security", "policies would hide rows of " + strings.Join(f.hidden, ", ") + ", so that replay and verify stop with an error",
		"no row level security on the outbox's tables", disableRLS(c, f.hidden),
	})
	add(len(f.readOnly) > 0, Warning{
		"default_transaction_read_only", "on for " + strings.Join(f.readOnly, ", ") + ": producers cannot publish; providers set it when the disk is full. The streamer goes on, so that WAL can be removed",
		"off", "free the disk, then ALTER DATABASE … RESET default_transaction_read_only; or ALTER ROLE …",
	})
	add(len(f.prepared) > 0, Warning{
		"prepared transactions", "the slot cannot be created before they end: " + strings.Join(f.prepared, ", "),
		"none", "COMMIT PREPARED or ROLLBACK PREPARED " + strings.Join(f.prepared, ", "),
	})
	add(f.subscribed && !c.from.LocalOnly, Warning{
		"subscription", "a subscription writes the outbox: events that another streamer delivers from the publisher are delivered a second time",
		"REPLICATION_ORIGIN = none, or no subscription", "set REPLICATION_ORIGIN=none (PostgreSQL 16 and later), or ALTER SUBSCRIPTION … DISABLE before the slot is created",
	})
	add(c.changed, Warning{
		"publication's record", "the publication was changed or recreated since it was recorded: the streamer compares the events published since with ClickHouse before it confirms",
		"the recorded one", "start the streamer",
	})
	return all
}

var everyStandby = regexp.MustCompile(`(^|[\s,(])"?\*"?([\s,)]|$)`)

func namesEveryStandby(names string) bool { return everyStandby.MatchString(names) }

func disableRLS(c *Control, tables []string) string {
	var b strings.Builder
	for _, t := range tables {
		fmt.Fprintf(&b, "ALTER TABLE %s NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY; ", pgx.Identifier{c.schema.Name(), t}.Sanitize())
	}
	return strings.TrimSpace(b.String())
}
