package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"diehard/shared/event"
	"diehard/shared/failure"
)

func refuse(format string, args ...any) error {
	return failure.Wrap(failure.Fatal, fmt.Errorf(format, args...))
}

// ErrPublicationChanged means that the publication is not as it was at Preflight. It is
// transient: the next Preflight says what it must be, or that it is to be proved.
var ErrPublicationChanged = errors.New("the publication was changed meanwhile; starting again")

// Unmet is a precondition that does not hold. Fix is a statement or a command.
type Unmet struct{ Problem, Fix string }

func (u *Unmet) Error() string { return u.Problem + ": run " + u.Fix }

func unmet(fix, problem string, args ...any) error {
	return failure.Wrap(failure.Fatal, &Unmet{Problem: fmt.Sprintf(problem, args...), Fix: fix})
}

// Precondition is one check of Preflight. Err is nil when it holds.
type Precondition struct {
	Name string
	Err  error
}

// Preconditions checks everything that must hold in PostgreSQL before the first byte is
// streamed; it changes nothing. written reports that rows of this slot are in ClickHouse
// already: then a missing slot was lost. ErrNoSlot as the error of the slot means that it
// never existed, see CreateInitialSlot.
//
// PostgreSQL 18 skips rows without an error when the publication is missing; that is
// why nothing here is left to the server.
func (c *Control) Preconditions(ctx context.Context, written bool) (Slot, []Precondition) {
	checks := []Precondition{
		{"server", c.CheckServer(ctx)},
		{"outbox", failure.Because(failure.Schema, c.checkOutbox(ctx))},
		{"publication", failure.Because(failure.Publication, c.checkShards(ctx))},
	}
	slot, err := c.checkSlot(ctx, written)
	return slot, append(checks, Precondition{"slot", failure.Because(failure.SlotLost, err)})
}

// Preflight is Preconditions, which must all hold, and records the slot.
//
// Errors: ErrNoSlot when the slot never existed; failure.Fatal with the fix, for whatever
// does not hold.
func (c *Control) Preflight(ctx context.Context, written bool) (Slot, error) {
	slot, checks := c.Preconditions(ctx, written)
	for _, check := range checks {
		if check.Err != nil {
			return Slot{}, check.Err
		}
	}
	return slot, c.recordSlot(ctx, false)
}

// checkGone distinguishes a slot that was lost from one that never was, which is ErrNoSlot.
func (c *Control) checkGone(ctx context.Context, written bool) error {
	known, err := c.checkRecord(ctx)
	if known || written {
		if rec, err := c.ReadIntent(ctx); err != nil || rec.BeingCreated() {
			return cmp.Or(err, ErrNoSlot)
		}
		if _, err := c.Slot(ctx); !errors.Is(err, ErrNoSlot) { // another streamer has created it since, and the record is that one's
			return errors.Join(err, errSlotCreated)
		}
		return unmet("`streamer slot create`, start the streamer, `streamer replay --from-table`",
			"slot %s is gone, and with it the position in the WAL: events may be missing in ClickHouse", c.slot)
	}
	if err != nil {
		return err
	}
	return ErrNoSlot
}

// errSlotCreated is transient.
var errSlotCreated = errors.New("the slot was created a moment ago; starting again")

// EnsureSlot is Preflight for a slot of which nothing is written, and CreateInitialSlot when there is none.
func (c *Control) EnsureSlot(ctx context.Context) (Slot, error) {
	slot, err := c.Preflight(ctx, false)
	if errors.Is(err, ErrNoSlot) {
		return c.CreateInitialSlot(ctx)
	}
	return slot, err
}

// CreateInitialSlot creates the slot after a Preflight that did not find it, and waits
// for the write transactions that are running. Events that were committed before
// it are not in its stream; Slot.MissedEvents means that there are some.
func (c *Control) CreateInitialSlot(ctx context.Context) (Slot, error) {
	if err := c.CreateSlot(ctx); err != nil {
		return Slot{}, err
	}
	slot, err := c.Slot(ctx)
	if err != nil {
		return Slot{}, err
	}
	if err := c.conn.QueryRow(ctx, c.schema.SQL(`SELECT EXISTS (SELECT FROM {outbox}.outbox)`)).Scan(&slot.MissedEvents); err != nil {
		return Slot{}, classify(fmt.Errorf("look into the outbox: %w", err))
	}
	return slot, nil
}

// CheckServer refuses a server that cannot serve a logical slot; one in recovery is waited for.
//
// Errors: failure.Fatal with the fix, or failure.Transient.
func (c *Control) CheckServer(ctx context.Context) error {
	var level string
	var recovery bool
	// From version 19 on wal_level = replica is enough: the first logical slot raises effective_wal_level.
	err := c.conn.QueryRow(ctx, `SELECT CASE WHEN current_setting('server_version_num')::int >= 190000 AND current_setting('wal_level') = 'replica'
			THEN 'logical' ELSE current_setting('wal_level') END, pg_catalog.pg_is_in_recovery()`).Scan(&level, &recovery)
	switch {
	case err != nil:
		return classify(fmt.Errorf("read wal_level: %w", err))
	case level != "logical":
		return unmet("ALTER SYSTEM SET wal_level = 'logical'; -- and restart PostgreSQL; RDS, Aurora: rds.logical_replication = 1 in the parameter group; "+
			"Cloud SQL: flag cloudsql.logical_decoding = on; Azure: wal_level = logical in Server parameters", "wal_level is %s", level)
	case recovery:
		return errors.New("the server is a standby in recovery; waiting for its promotion")
	}
	if !c.from.LocalOnly {
		return nil
	}
	version, err := c.ServerVersion(ctx)
	if err == nil && version < originFilter {
		err = refuse("REPLICATION_ORIGIN = none needs PostgreSQL 16 or later: set it to any, and create the slot when the subscription has been dropped")
	}
	return err
}

// originFilter is the first version whose pgoutput has the option origin.
const originFilter = 160000

// checkOutbox refuses what only has the outbox's name.
func (c *Control) checkOutbox(ctx context.Context) error {
	var kind *string
	err := c.conn.QueryRow(ctx, `SELECT CASE c.relkind WHEN 'p' THEN 'table' WHEN 'r' THEN 'table' WHEN 'v' THEN 'view'
			WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'something else' END
		FROM (SELECT to_regclass($1) AS oid) AS o LEFT JOIN pg_catalog.pg_class AS c ON c.oid = o.oid`, c.table()).Scan(&kind)
	switch {
	case err != nil:
		return classify(fmt.Errorf("look for the outbox: %w", err))
	case kind == nil || *kind == "something else":
		return unmet("streamer migrate up", "table %s does not exist", c.table())
	case *kind != "table":
		return unmet("ALTER … RENAME, then streamer migrate up", "%s is a %s and must be the table of the migrations", c.table(), *kind)
	}
	return nil
}

// checkPublication refuses a shard's publication by what it does, and returns its state.
func (c *Control) checkPublication(ctx context.Context, shard Shard) (state string, err error) {
	name := shard.Name(c.from.Publication)
	var before, oldest string
	var insert, others, root, columns bool
	var tables, filters []string
	// Row filters and column lists are newer than PostgreSQL 14.
	err = c.conn.QueryRow(ctx, `
		SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text, pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text, `+publicationState+`, pubinsert, pubupdate OR pubdelete OR pubtruncate, pubviaroot, tables, filters,
		       EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND to_jsonb(r) ->> 'prattrs' IS NOT NULL)
		FROM pg_catalog.pg_publication p, LATERAL (
			SELECT coalesce(array_agg(t.schemaname || '.' || t.tablename), '{}') AS tables,
			       coalesce(array_agg(coalesce(to_jsonb(t) ->> 'rowfilter', '')), '{}') AS filters
			FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname) t
		WHERE pubname = $1`, name).Scan(&before, &oldest, &state, &insert, &others, &root, &tables, &filters, &columns)
	if shard == c.from.Shard {
		c.before, c.oldest = before, oldest
	}
	p, outbox := quoteIdent(name), c.table()
	switch {
	case errors.Is(err, pgx.ErrNoRows) && shard.Count > 0:
		return "", unmet(fmt.Sprintf("`streamer migrate up` with STREAMER_SHARD = %s, which creates those of all shards", c.from.Shard), "publication %s is missing", name)
	case errors.Is(err, pgx.ErrNoRows):
		return "", unmet(fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (publish = 'insert', publish_via_partition_root = true)", p, outbox),
			"publication %s is missing", name)
	case err != nil:
		return "", classify(fmt.Errorf("read publication %s: %w", name, err))
	case !insert || others:
		return "", unmet("ALTER PUBLICATION "+p+" SET (publish = 'insert')", "publication %s must publish inserts and nothing else", name)
	case !root:
		return "", unmet("ALTER PUBLICATION "+p+" SET (publish_via_partition_root = true)", "publication %s must publish through the partition root", name)
	case len(tables) != 1 || tables[0] != c.listed():
		return "", unmet("ALTER PUBLICATION "+p+" SET TABLE "+c.setTable(shard), "publication %s must hold the table %s alone and holds %s",
			name, c.listed(), strings.Join(tables, ", "))
	case columns:
		return "", unmet("ALTER PUBLICATION "+p+" SET TABLE "+c.setTable(shard)+"; -- rows committed meanwhile need `streamer replay --from-table`",
			"publication %s has a column list: the other columns are not sent", name)
	case filters[0] != shard.Filter():
		return "", unmet("ALTER PUBLICATION "+p+" SET TABLE "+c.setTable(shard)+"; -- rows committed meanwhile need `streamer replay --from-table`",
			"publication %s has the row filter %q and must have %q, or events go to two shards or to none", name, filters[0], shard.Filter())
	}
	return state, nil
}

// setTable is what follows SET TABLE.
func (c *Control) setTable(shard Shard) string {
	if shard.Count == 0 {
		return c.table()
	}
	return c.table() + " WHERE " + shard.Filter()
}

// listed is the outbox as in a list of tables.
func (c *Control) listed() string { return c.schema.Name() + "." + event.Table }

// table is the outbox with its schema.
func (c *Control) table() string { return c.schema.SQL("{outbox}." + event.Table) }

// checkSlot refuses a slot that is missing, another program's, or lost.
//
// Errors: ErrNoSlot when it never existed, or when its creation has not come to its end.
func (c *Control) checkSlot(ctx context.Context, written bool) (Slot, error) {
	// First: of a slot that is created once more meanwhile, the record that says so comes last.
	rec, unread := c.ReadIntent(ctx)
	s, err := c.Slot(ctx)
	if errors.Is(err, ErrNoSlot) {
		return s, c.checkGone(ctx, written)
	}
	if err != nil {
		return s, err
	}
	if err := c.refuseForeign(ctx, s); err != nil {
		return s, err
	}
	if unread != nil {
		return s, unread
	}
	if rec.BeingCreated() {
		return s, ErrNoSlot
	}
	if _, err := c.checkRecord(ctx); err != nil {
		return s, err
	}
	if s.Lost() {
		return s, unmet(recoverSlot+"; then raise max_slot_wal_keep_size", "slot %s is lost (%s %s): PostgreSQL has removed WAL it needed",
			s.Name, s.WALStatus, s.InvalidationReason)
	}
	return s, nil
}

// refuseForeign refuses a slot that cannot be a streamer's of this database.
func (c *Control) refuseForeign(ctx context.Context, s Slot) error {
	var database string
	if err := c.conn.QueryRow(ctx, `SELECT current_database()`).Scan(&database); err != nil {
		return classify(fmt.Errorf("read database name: %w", err))
	}
	const another = "the streamer with another REPLICATION_SLOT"
	switch {
	case s.Plugin != "pgoutput":
		return unmet(another, "slot %s uses %q and not pgoutput", s.Name, s.Plugin)
	case s.Database != database:
		return unmet(another, "slot %s belongs to database %s and DATABASE_URL names %s", s.Name, s.Database, database)
	}
	return nil
}

// recoverSlot replaces a slot that does not deliver what it should. The replay needs the streamer.
const recoverSlot = "`streamer slot drop`, `streamer slot create`, start the streamer, `streamer replay --from-table`"
