package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// Control is an ordinary connection beside the stream: it checks what must hold
// before streaming, and proves before each insert that the slot is still ours.
// Not safe for concurrent use.
type Control struct {
	conn        *pgx.Conn
	slot        string
	publication string
	shard       Shard
	messages    bool
	publicOID   uint32
	published   string // state of the publication, see publicationState
}

// Origin is what events are read from.
type Origin struct {
	Slot, Publication string // of the shard, if there are shards
	Shard             Shard
	Messages          bool // events without a table are wanted
}

// OpenControl connects.
//
// Errors: failure.Fatal for a wrong URL, user or password, otherwise failure.Transient.
func OpenControl(ctx context.Context, url, application string, from Origin) (*Control, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, failure.Wrap(failure.Fatal, fmt.Errorf("DATABASE_URL: %w", postgres.Redact(err)))
	}
	cfg.RuntimeParams["application_name"] = application
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, classify(fmt.Errorf("connect to PostgreSQL: %w", postgres.Explain(err)))
	}
	return &Control{conn: conn, slot: from.Slot, publication: from.Publication, shard: from.Shard, messages: from.Messages}, nil
}

// Close ends the connection.
func (c *Control) Close(ctx context.Context) { _ = c.conn.Close(ctx) } // it is gone either way

// Slot is a row of pg_replication_slots.
type Slot struct {
	Name               string
	Plugin             string
	Database           string
	Active             bool
	WALStatus          string
	InvalidationReason string // PostgreSQL 17 and newer
	RestartLSN         pglogrepl.LSN
	ConfirmedFlush     pglogrepl.LSN
	// Late is set by FirstSlot: the outbox already had events, which the slot may not deliver.
	Late bool
}

// ErrNoSlot means that the slot does not exist.
var ErrNoSlot = errors.New("the replication slot does not exist")

// Slot reads the slot's state.
//
// Errors: ErrNoSlot.
func (c *Control) Slot(ctx context.Context) (Slot, error) {
	s := Slot{Name: c.slot}
	var restart, confirmed *string
	err := c.conn.QueryRow(ctx, `
		SELECT coalesce(plugin, ''), coalesce(database, ''), active, coalesce(wal_status, ''),
		       coalesce(to_jsonb(s)->>'invalidation_reason', ''), restart_lsn::text, confirmed_flush_lsn::text
		FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1`, c.slot).
		Scan(&s.Plugin, &s.Database, &s.Active, &s.WALStatus, &s.InvalidationReason, &restart, &confirmed)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, ErrNoSlot
	}
	if err != nil {
		return s, classify(fmt.Errorf("read slot %s: %w", c.slot, err))
	}
	if s.RestartLSN, err = parseLSN(restart); err != nil {
		return s, err
	}
	s.ConfirmedFlush, err = parseLSN(confirmed)
	return s, err
}

func parseLSN(v *string) (pglogrepl.LSN, error) {
	if v == nil {
		return 0, nil
	}
	lsn, err := pglogrepl.ParseLSN(*v)
	if err != nil {
		return 0, fmt.Errorf("parse LSN: %w", err)
	}
	return lsn, nil
}

// CreateSlot makes the slot; on PostgreSQL 17 and newer one that follows a
// failover. It waits for the write transactions that are running. A slot that
// another streamer made in the meantime is fine.
func (c *Control) CreateSlot(ctx context.Context) error {
	call := "pg_create_logical_replication_slot($1, 'pgoutput')"
	version, err := c.ServerVersion(ctx)
	if err != nil {
		return err
	}
	if version >= 170000 {
		call = "pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)"
	}
	if _, err := c.conn.Exec(ctx, "SELECT pg_catalog."+call, c.slot); err != nil && !isCode(err, codeDuplicateObject) {
		return classify(fmt.Errorf("create slot %s: %w", c.slot, err))
	}
	return c.remember(ctx, c.readsMessages(), 0)
}

// Recreate makes the slot anew, at the present end of the WAL. It is the operator's
// word that what lies between is dealt with otherwise; until then retention keeps it.
//
// Errors: failure.Fatal when the slot exists or the publication is not as it must be.
func (c *Control) Recreate(ctx context.Context) (Slot, error) {
	if err := c.CheckServer(ctx); err != nil {
		return Slot{}, err
	}
	if err := c.checkShards(ctx); err != nil {
		return Slot{}, err
	}
	if _, err := c.Slot(ctx); !errors.Is(err, ErrNoSlot) {
		if err != nil {
			return Slot{}, err
		}
		return Slot{}, refuse("slot %s exists: drop it first with `streamer slot drop`", c.slot)
	}
	// Until the new slot is noted, nothing counts as delivered.
	if _, err := c.conn.Exec(ctx, `UPDATE public.streamer_slot SET delivered_since = 'infinity' WHERE slot_name = $1`, c.slot); err != nil {
		return Slot{}, classify(fmt.Errorf("renew slot %s: %w", c.slot, err))
	}
	if err := c.CreateSlot(ctx); err != nil {
		return Slot{}, err
	}
	if err := c.renew(ctx); err != nil {
		return Slot{}, err
	}
	return c.Slot(ctx)
}

// renew replaces what is remembered of the slot before, but for the place where messages
// began to be events: what has landed since then is numbered so. There is no moment at
// which nothing is remembered: retention would go on without this slot.
func (c *Control) renew(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, c.conn, func(pgx.Tx) error {
		from, err := c.MessagesFrom(ctx)
		if err != nil {
			return err
		}
		if err := c.Forget(ctx); err != nil {
			return err
		}
		return c.remember(ctx, c.readsMessages(), from)
	})
	if err != nil {
		return fmt.Errorf("renew slot %s: %w", c.slot, err)
	}
	return nil
}

// Forget lets retention go on without the slot, which must be given up for good.
func (c *Control) Forget(ctx context.Context) error {
	if _, err := c.conn.Exec(ctx, `DELETE FROM public.streamer_slot WHERE slot_name = $1`, c.slot); err != nil {
		return classify(fmt.Errorf("forget slot %s: %w", c.slot, err))
	}
	return nil
}

// DropSlot removes the slot and closes the door for messages. That it existed stays
// known: retention waits for Recreate, or for Forget.
//
// Errors: ErrSlotActive, ErrNoSlot.
func (c *Control) DropSlot(ctx context.Context) error {
	_, err := c.conn.Exec(ctx, `SELECT pg_catalog.pg_drop_replication_slot($1)`, c.slot)
	if isCode(err, codeUndefinedObject) {
		return ErrNoSlot
	}
	if err != nil {
		return classify(fmt.Errorf("drop slot %s: %w", c.slot, err))
	}
	if _, err := c.conn.Exec(ctx, `UPDATE public.streamer_slot SET messages = false, delivered_since = 'infinity' WHERE slot_name = $1`, c.slot); err != nil {
		return classify(fmt.Errorf("note that slot %s is dropped: %w", c.slot, err))
	}
	return nil
}

// remember notes which publication the slot was made for, once. Messages are events from
// the position from on; without it from where the slot stands, which is its beginning. A
// slot that another streamer is still making stands nowhere: NoteMessages notes them then.
func (c *Control) remember(ctx context.Context, messages bool, from pglogrepl.LSN) error {
	_, err := c.conn.Exec(ctx, `
		INSERT INTO public.streamer_slot AS s (slot_name, publication_oid, publication_state, messages, messages_from)
		SELECT $1::text, $2::oid, $3::text, $4::bool AND coalesce(known, start) IS NOT NULL, coalesce(known, CASE WHEN $4 THEN start END)
		FROM (SELECT nullif($5::pg_lsn, '0/0') AS known,
			(SELECT confirmed_flush_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = $1) AS start) AS m
		ON CONFLICT (slot_name) DO UPDATE SET publication_state = excluded.publication_state WHERE s.publication_state IS NULL`,
		c.slot, c.publicOID, c.published, messages, from.String())
	if err != nil {
		return classify(fmt.Errorf("remember slot %s (has `streamer migrate up` run?): %w", c.slot, err))
	}
	return nil
}

// publicationState is an expression on p, a row of pg_publication: a text that
// every change of the publication changes, also one that is taken back.
const publicationState = `concat_ws(' ', p.oid, p.xmin, (
	SELECT string_agg(concat_ws(',', r.oid, r.xmin, r.prrelid), ' ' ORDER BY r.oid) FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid))`

// checkRemembered refuses a publication that is not as it was when the slot was
// made. known tells that the slot was made by a streamer.
func (c *Control) checkRemembered(ctx context.Context) (known bool, err error) {
	var oid uint32
	var state string
	err = c.conn.QueryRow(ctx, `SELECT publication_oid, coalesce(publication_state, $2) FROM public.streamer_slot WHERE slot_name = $1`,
		c.slot, c.published).Scan(&oid, &state)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, classify(fmt.Errorf("read streamer_slot (has `streamer migrate up` run?): %w", err))
	case oid != c.publicOID || state != c.published:
		return true, errRecreated(c.publication)
	}
	return true, nil
}

// ServerVersion returns server_version_num, for example 180004.
func (c *Control) ServerVersion(ctx context.Context) (int, error) {
	var v int
	if err := c.conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&v); err != nil {
		return 0, classify(fmt.Errorf("read server version: %w", err))
	}
	return v, nil
}

// ErrFenced means that the slot is no longer ours: a standby has taken over, and nothing may be written.
var ErrFenced = errors.New("another streamer has taken the slot over")

// VerifyOwner proves that the session with this process id and application name
// holds the slot, and that the publication is as it was when the session began: so
// everything that this session has read before was sent completely. Both names are
// needed: process ids come around again.
//
// Errors: ErrFenced; failure.Fatal when the publication was dropped, recreated or changed.
func (c *Control) VerifyOwner(ctx context.Context, pid uint32, application string) error {
	var ours bool
	var published *string
	err := c.conn.QueryRow(ctx, `
		SELECT coalesce((SELECT s.active_pid = $2::int AND a.application_name = $3
		                 FROM pg_catalog.pg_replication_slots s, pg_catalog.pg_stat_get_activity($2::int) a
		                 WHERE s.slot_name = $1), false),
		       (SELECT `+publicationState+` FROM pg_catalog.pg_publication p WHERE pubname = $4)`,
		c.slot, int32(pid), application, c.publication).Scan(&ours, &published) //nolint:gosec // process ids are small
	switch {
	case err != nil:
		return classify(fmt.Errorf("verify that slot %s is ours: %w", c.slot, err))
	case !ours:
		return ErrFenced
	case published == nil || *published != c.published:
		return errRecreated(c.publication)
	}
	return nil
}
