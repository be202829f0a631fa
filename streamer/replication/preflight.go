package replication

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/event"
	"diehard/shared/failure"
)

func refuse(format string, args ...any) error {
	return failure.Wrap(failure.Fatal, fmt.Errorf(format, args...))
}

func isCode(err error, code string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == code
}

func errRecreated(publication string) error {
	return refuse("publication %s was dropped, recreated or changed: rows committed in between were not sent. "+
		"Make sure that it is as it must be (`streamer doctor` tells), then run `streamer slot drop`, `streamer slot create` "+
		"and `streamer replay --from-table`", publication)
}

// Preflight checks everything that must hold before the first byte is streamed.
// landed tells that rows of this slot are in ClickHouse already: then a missing
// slot has been lost.
//
// PostgreSQL 18 skips rows in silence when the publication is missing; that is
// why nothing here is left to the server.
//
// Errors: ErrNoSlot when the slot never existed, see FirstSlot; failure.Fatal
// with the cure, for whatever does not hold.
func (c *Control) Preflight(ctx context.Context, landed bool) (Slot, error) {
	if err := c.CheckServer(ctx); err != nil {
		return Slot{}, err
	}
	if err := c.checkShards(ctx); err != nil {
		return Slot{}, err
	}
	slot, err := c.Slot(ctx)
	if errors.Is(err, ErrNoSlot) {
		return Slot{}, c.checkGone(ctx, landed)
	}
	if err != nil {
		return Slot{}, err
	}
	if _, err := c.checkRemembered(ctx); err != nil {
		return Slot{}, err
	}
	if err := c.checkSlot(ctx, slot); err != nil {
		return Slot{}, err
	}
	return slot, c.remember(ctx, false, 0)
}

// checkGone tells a slot that was lost from one that never was, which is ErrNoSlot.
func (c *Control) checkGone(ctx context.Context, landed bool) error {
	known, err := c.checkRemembered(ctx)
	if known || landed {
		return refuse("slot %s is gone, and with it the place in the WAL: events may be missing in ClickHouse. "+
			"Run `streamer slot create`, then `streamer replay --from-table` to fill the gap", c.slot)
	}
	if err != nil {
		return err
	}
	return ErrNoSlot
}

// EnsureSlot is Preflight for a slot of which nothing has landed, and FirstSlot when there is none.
func (c *Control) EnsureSlot(ctx context.Context) (Slot, error) {
	slot, err := c.Preflight(ctx, false)
	if errors.Is(err, ErrNoSlot) {
		return c.FirstSlot(ctx)
	}
	return slot, err
}

// FirstSlot creates the slot after a Preflight that did not find it, and waits
// for the write transactions that are running. Events that were committed before
// it are not in its stream; Slot.Late tells that there are some.
func (c *Control) FirstSlot(ctx context.Context) (Slot, error) {
	if err := c.CreateSlot(ctx); err != nil {
		return Slot{}, err
	}
	slot, err := c.Slot(ctx)
	if err != nil {
		return Slot{}, err
	}
	if err := c.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM public.outbox)`).Scan(&slot.Late); err != nil {
		return Slot{}, classify(fmt.Errorf("look into the outbox: %w", err))
	}
	return slot, nil
}

// CheckServer refuses a server that cannot serve a logical slot; one in recovery is waited for.
//
// Errors: failure.Fatal with the cure, or failure.Transient.
func (c *Control) CheckServer(ctx context.Context) error {
	var level string
	var recovery bool
	err := c.conn.QueryRow(ctx, `SELECT current_setting('wal_level'), pg_catalog.pg_is_in_recovery()`).Scan(&level, &recovery)
	switch {
	case err != nil:
		return classify(fmt.Errorf("read wal_level: %w", err))
	case level != "logical":
		return refuse("wal_level is %s: run ALTER SYSTEM SET wal_level = 'logical' and restart PostgreSQL", level)
	case recovery:
		return errors.New("the server is a standby in recovery; waiting for its promotion")
	}
	return nil
}

// checkPublication returns the oid and the state of a shard's publication.
func (c *Control) checkPublication(ctx context.Context, shard Shard) (oid uint32, state string, err error) {
	name := shard.Name(strings.TrimSuffix(c.publication, c.shard.suffix()))
	var insert, others, root bool
	var tables, filters []string
	// Row filters are newer than PostgreSQL 14.
	err = c.conn.QueryRow(ctx, `
		SELECT oid, `+publicationState+`, pubinsert, pubupdate OR pubdelete OR pubtruncate, pubviaroot, tables, filters
		FROM pg_catalog.pg_publication p, LATERAL (
			SELECT coalesce(array_agg(t.tablename::text), '{}') AS tables, coalesce(array_agg(coalesce(to_jsonb(t) ->> 'rowfilter', '')), '{}') AS filters
			FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname) t
		WHERE pubname = $1`, name).Scan(&oid, &state, &insert, &others, &root, &tables, &filters)
	p := quoteIdent(name)
	switch {
	case errors.Is(err, pgx.ErrNoRows) && shard.Count > 0:
		return 0, "", refuse("publication %s is missing: run `streamer migrate up` with STREAMER_SHARD = %s, which makes those of all shards", name, c.shard)
	case errors.Is(err, pgx.ErrNoRows):
		return 0, "", refuse("publication %s is missing: run `streamer migrate up`, or CREATE PUBLICATION %s FOR TABLE public.%s "+
			"WITH (publish = 'insert', publish_via_partition_root = true)", name, p, event.Table)
	case err != nil:
		return 0, "", classify(fmt.Errorf("read publication %s: %w", name, err))
	case !insert || others:
		return 0, "", refuse("publication %s must publish inserts and nothing else: run ALTER PUBLICATION %s SET (publish = 'insert')", name, p)
	case !root:
		return 0, "", refuse("publication %s must publish through the partition root: run ALTER PUBLICATION %s SET (publish_via_partition_root = true)", name, p)
	case len(tables) != 1 || tables[0] != event.Table:
		return 0, "", refuse("publication %s must hold the table %s alone and holds %s: run ALTER PUBLICATION %s SET TABLE %s",
			name, event.Table, strings.Join(tables, ", "), p, setTable(shard))
	case filters[0] != shard.Filter():
		return 0, "", refuse("publication %s has the row filter %q and must have %q, or events go to two shards or to none: "+
			"run ALTER PUBLICATION %s SET TABLE %s; rows committed meanwhile need `streamer replay --from-table`",
			name, filters[0], shard.Filter(), p, setTable(shard))
	}
	return oid, state, nil
}

// setTable is what follows SET TABLE.
func setTable(shard Shard) string {
	if shard.Count == 0 {
		return "public." + event.Table
	}
	return "public." + event.Table + " WHERE " + shard.Filter()
}

func (c *Control) checkSlot(ctx context.Context, s Slot) error {
	var database string
	if err := c.conn.QueryRow(ctx, `SELECT current_database()`).Scan(&database); err != nil {
		return classify(fmt.Errorf("read database name: %w", err))
	}
	switch {
	case s.Plugin != "pgoutput":
		return refuse("slot %s uses %q and not pgoutput: choose another name with REPLICATION_SLOT, or drop the slot", s.Name, s.Plugin)
	case s.Database != database:
		return refuse("slot %s belongs to database %s and DATABASE_URL names %s: choose another name with REPLICATION_SLOT", s.Name, s.Database, database)
	case s.WALStatus == "lost" || s.InvalidationReason != "":
		return refuse("slot %s is lost (%s %s): PostgreSQL has removed WAL it needed. Run `streamer slot drop`, `streamer slot create` "+
			"and `streamer replay --from-table`; then raise max_slot_wal_keep_size", s.Name, s.WALStatus, s.InvalidationReason)
	}
	return nil
}

// Landed is how far ClickHouse holds this slot's events; zero when it holds none.
type Landed struct {
	LSN      pglogrepl.LSN
	Timeline uint32 // of the server that wrote it
}

// newSlot is what to do about a server that has forgotten events which have landed:
// its WAL takes their places a second time, so that the rows to come need another source.
const newSlot = "Check what it lost; then run `streamer slot drop --for-good`, set REPLICATION_SLOT to a new name, start the streamer " +
	"and run `streamer replay --from-table`"

// RefuseHistory says what to do when the stream shows that the server's history is
// not the one that has landed, which CheckHistory cannot see once the WAL has grown.
func RefuseHistory(err error) error {
	return refuse("%w: it was restored from a backup or is a standby that was behind at its promotion. %s", err, newSlot)
}

// CheckHistory refuses a server whose WAL does not contain what has landed: one
// restored from a backup, or a standby that was promoted too early. It reads the
// end of the WAL itself and returns it: l must be older, because the streamer
// that holds the slot goes on landing. timeline is what Identify returned.
//
// Errors: failure.Fatal with the cure; failure.Transient when the server was promoted meanwhile.
func (c *Conn) CheckHistory(ctx context.Context, timeline int32, l Landed) (walEnd pglogrepl.LSN, err error) {
	sys, err := c.Identify(ctx)
	switch {
	case err != nil:
		return 0, err
	case sys.Timeline != timeline:
		return 0, fmt.Errorf("the server was promoted: timeline %d was %d a moment ago", sys.Timeline, timeline)
	case l.LSN > sys.XLogPos:
		return 0, refuse("ClickHouse holds events up to %s, but this server's WAL ends at %s: it was restored from a backup or is a standby "+
			"that was behind at its promotion. %s", l.LSN, sys.XLogPos, newSlot)
	case l.Timeline == 0 || uint32(timeline) == l.Timeline: //nolint:gosec // timelines are 32 bits wide
		return sys.XLogPos, nil
	}
	switched, err := c.leftTimeline(ctx, timeline, l.Timeline)
	if err != nil {
		return 0, err
	}
	if l.LSN >= switched {
		return 0, refuse("ClickHouse holds events up to %s of timeline %d, but this server left that timeline at %s: they were lost in a failover. %s",
			l.LSN, l.Timeline, switched, newSlot)
	}
	return sys.XLogPos, nil
}

// leftTimeline returns where the history of timeline now leaves timeline old.
func (c *Conn) leftTimeline(ctx context.Context, now int32, old uint32) (pglogrepl.LSN, error) {
	if uint32(now) < old { //nolint:gosec // timelines are 32 bits wide
		return 0, nil // a server that was replaced; the first timeline has no history to ask for
	}
	history, err := pglogrepl.TimelineHistory(ctx, c.pg, now)
	if err != nil {
		return 0, classify(fmt.Errorf("read timeline history: %w", err))
	}
	for line := range strings.Lines(string(history.Content)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != fmt.Sprint(old) {
			continue
		}
		lsn, err := pglogrepl.ParseLSN(f[1])
		if err != nil {
			return 0, fmt.Errorf("parse timeline history: %w", err)
		}
		return lsn, nil
	}
	return 0, nil // the server never was on that timeline
}
