package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/event"
	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// Control is an ordinary connection beside the stream: it checks what must hold
// before streaming, and proves before each insert that the slot is still ours.
// Not safe for concurrent use.
type Control struct {
	// Waits is called when a call waits for what may take long; it may be nil.
	Waits func(what string)

	conn        *pgx.Conn
	from        Origin
	slot        string // from's names for its shard
	publication string
	schema      event.Schema
	published   string // state of the publication, see publicationState
	before      string // transactions that began to write before published was read have lower numbers
	oldest      string // of them, those that were open then have this number or a higher one
	changed     bool   // the publication is not the one that was recorded, see PublicationChanged
}

// Origin is what events are read from.
type Origin struct {
	Slot, Publication string // without the suffix of the shard: see SlotName and PublicationName
	Shard             Shard
	Messages          bool         // events without a table are wanted
	LocalOnly         bool         // events that a subscription wrote are not wanted
	Schema            event.Schema // of the outbox
	// Dial makes the network connection; nil is TCP.
	Dial pgconn.DialFunc
}

// SlotName is the name of the shard's slot.
func (o Origin) SlotName() string { return o.Shard.Name(o.Slot) }

// PublicationName is the name of the shard's publication.
func (o Origin) PublicationName() string { return o.Shard.Name(o.Publication) }

// OpenControl connects.
//
// Errors: failure.Fatal for a wrong URL, user or password, otherwise failure.Transient.
func OpenControl(ctx context.Context, url, application string, from Origin) (*Control, error) {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: url, Schema: from.Schema}, postgres.Options{Application: application, Outbox: true, Dial: from.Dial})
	if err != nil {
		return nil, classify(err)
	}
	return &Control{conn: conn, from: from, slot: from.SlotName(), publication: from.PublicationName(), schema: from.Schema}, nil
}

// CheckMigrated asks migrated, which may be nil, with this connection, once all tables are
// there, so that no role can put another in their place.
//
// Errors: those of migrated; failure.Fatal where a table does not exist.
func (c *Control) CheckMigrated(ctx context.Context, migrated func(context.Context, *pgx.Conn) error) error {
	if migrated == nil {
		return nil
	}
	complete, err := postgres.ProveOutbox(ctx, c.conn, c.schema)
	switch {
	case err != nil:
		return classify(err)
	case !complete:
		return fatal(failure.Schema, errors.New("a table of the outbox does not exist: run `streamer migrate up`"))
	}
	return classify(migrated(ctx, c.conn))
}

// Close ends the connection.
func (c *Control) Close(ctx context.Context) { _ = c.conn.Close(ctx) } // it is gone either way

// ReplaceSlot makes the slot anew, at the present end of the WAL. It is the operator's
// word that what lies between is dealt with otherwise; until then retention keeps it.
//
// Errors: failure.Fatal when the slot exists or the publication is not as it must be.
func (c *Control) ReplaceSlot(ctx context.Context) (Slot, error) {
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
	if _, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_slot_undelivered($1::text, false)`), c.slot); err != nil {
		return Slot{}, classify(fmt.Errorf("replace slot %s: %w", c.slot, err))
	}
	if err := c.CreateSlot(ctx); err != nil {
		return Slot{}, err
	}
	return c.Slot(ctx)
}

// replaceRecord replaces what is remembered of the slot before, but for the place where messages
// began to be events: what is written since then is numbered so. There is no moment at
// which nothing is remembered: retention would go on without this slot.
func (c *Control) replaceRecord(ctx context.Context) error {
	_, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_slot_replace($1::text, $2::text, $3::text, $4::boolean)`),
		c.slot, c.publication, c.published, c.readsMessages())
	if err != nil {
		return classify(fmt.Errorf("replace the record of slot %s: %w", c.slot, err))
	}
	return nil
}

// DeleteRecord lets retention go on without the slot, which must be given up permanently.
func (c *Control) DeleteRecord(ctx context.Context) error {
	if _, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_slot_delete($1::text)`), c.slot); err != nil {
		return classify(fmt.Errorf("delete the record of slot %s: %w", c.slot, err))
	}
	return c.deleteIntent(ctx)
}

// DropSlot removes the slot, after which publish_event_message refuses messages. That it existed
// stays known: retention waits for ReplaceSlot, or for DeleteRecord.
//
// Errors: ErrSlotActive, ErrNoSlot.
func (c *Control) DropSlot(ctx context.Context) error {
	if err := c.dropSlot(ctx); err != nil {
		return err
	}
	if _, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_slot_undelivered($1::text, true)`), c.slot); err != nil {
		return classify(fmt.Errorf("note that slot %s is dropped: %w", c.slot, err))
	}
	return nil
}

func (c *Control) dropSlot(ctx context.Context) error {
	_, err := c.conn.Exec(ctx, `SELECT pg_catalog.pg_drop_replication_slot($1)`, c.slot)
	if postgres.IsCode(err, pgerrcode.UndefinedObject) {
		return ErrNoSlot
	}
	if err != nil {
		return classify(fmt.Errorf("drop slot %s: %w", c.slot, err))
	}
	return nil
}

// recordSlot records which publication the slot was made for, once. Messages are events
// from where the slot stands, which is its beginning. A slot that another streamer is still
// making stands nowhere: NoteMessages records them then.
func (c *Control) recordSlot(ctx context.Context, messages bool) error {
	_, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_slot_record($1::text, $2::text, $3::text, $4::boolean, NULL::pg_lsn)`),
		c.slot, c.publication, c.published, messages)
	if err != nil {
		return classify(fmt.Errorf("record slot %s (has `streamer migrate up` run?): %w", c.slot, err))
	}
	return nil
}

// publicationState is an expression on p, a row of pg_publication: a text that
// every change of the publication changes, also one that is taken back.
const publicationState = `concat_ws(' ', p.oid, p.xmin, (
	SELECT string_agg(concat_ws(',', r.oid, r.xmin, r.prrelid), ' ' ORDER BY r.oid) FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid))`

// checkRecord compares the publication with the one that was recorded. known means that
// the slot was made by a streamer.
func (c *Control) checkRecord(ctx context.Context) (known bool, err error) {
	var state string
	err = c.conn.QueryRow(ctx, c.schema.SQL(`SELECT coalesce(publication_state, $2) FROM {outbox}.diehard_slot WHERE slot_name = $1`),
		c.slot, c.published).Scan(&state)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, classify(fmt.Errorf("read diehard_slot (has `streamer migrate up` run?): %w", err))
	}
	c.changed = c.published != "" && state != c.published // otherwise it is refused for what it is
	return true, nil
}

// PublicationChanged reports, after Preflight, that the publication does what it must and
// is not the one that was recorded with the slot: REASSIGN OWNED, pg_upgrade and an ALTER
// PUBLICATION that changes nothing look the same as one that was different for a while.
// What was committed meanwhile has to be proved before it is confirmed; then AcceptPublication.
func (c *Control) PublicationChanged() bool { return c.changed }

// AcceptPublication records the publication as it was at Preflight.
func (c *Control) AcceptPublication(ctx context.Context) error {
	return c.acceptPublication(ctx, true)
}

// AcceptSlot ends every question about what the slot has delivered: the publication as it is
// counts, and retention keeps what was published before now until `streamer replay
// --from-table` has delivered it.
//
// Errors: ErrNoSlot; failure.Fatal when the publication is not as it must be.
func (c *Control) AcceptSlot(ctx context.Context) (Slot, error) {
	if _, err := c.Preflight(ctx, true); err != nil {
		return Slot{}, err
	}
	if err := c.awaitOlder(ctx); err != nil {
		return Slot{}, err
	}
	if err := c.acceptPublication(ctx, false); err != nil {
		return Slot{}, err
	}
	return c.Slot(ctx)
}

// MissEvents records that events which were published before now may not be delivered.
func (c *Control) MissEvents(ctx context.Context) error {
	if _, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_slot_missed($1::text)`), c.slot); err != nil {
		return classify(fmt.Errorf("note what slot %s misses: %w", c.slot, err))
	}
	return nil
}

func (c *Control) acceptPublication(ctx context.Context, proved bool) error {
	_, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_slot_accept($1::text, $2::text, $3::text, $4::boolean)`),
		c.slot, c.publication, c.published, proved)
	if err != nil {
		return classify(fmt.Errorf("record publication %s of slot %s: %w", c.publication, c.slot, err))
	}
	c.changed = false
	return nil
}

// ServerVersion returns server_version_num, for example 180004.
func (c *Control) ServerVersion(ctx context.Context) (int, error) {
	var v int
	if err := c.conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&v); err != nil {
		return 0, classify(fmt.Errorf("read server version: %w", err))
	}
	return v, nil
}

// ErrFenced means that the slot is no longer this session's: nothing may be written.
var ErrFenced = errors.New("this session no longer holds the slot: PostgreSQL has ended it, or another streamer has taken over")

// Owner is a replication session: its process and its application name. Both are
// needed: process ids come around again.
type Owner struct {
	PID         uint32
	Application string
}

func (o Owner) pid() int32 { return int32(o.PID) } //nolint:gosec // process ids are small

// ownsSlot is whether the session with process id $2 and application name $3 holds slot $1.
const ownsSlot = `coalesce((
	SELECT s.active_pid = $2::int AND a.application_name = $3
	FROM pg_catalog.pg_replication_slots s, pg_catalog.pg_stat_get_activity($2::int) a
	WHERE s.slot_name = $1), false)`

// publishedState is the state of publication $4, NULL when it is missing.
const publishedState = `(SELECT ` + publicationState + ` FROM pg_catalog.pg_publication p WHERE pubname = $4)`

// VerifyOwner proves that owner holds the slot, and that the publication is as it was
// when the session began: so everything that this session has read before was sent completely.
//
// Errors: ErrFenced; ErrPublicationChanged.
func (c *Control) VerifyOwner(ctx context.Context, owner Owner) error {
	var ours bool
	var published *string
	err := c.conn.QueryRow(ctx, `SELECT `+ownsSlot+`, `+publishedState, c.slot, owner.pid(), owner.Application, c.publication).Scan(&ours, &published)
	switch {
	case err != nil:
		return classify(fmt.Errorf("verify that slot %s is ours: %w", c.slot, err))
	case !ours:
		return ErrFenced
	case published == nil || *published != c.published:
		return ErrPublicationChanged
	}
	return nil
}
