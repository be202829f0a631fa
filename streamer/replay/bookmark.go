package replay

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/postgres"
	"diehard/streamer/replication"
)

// Bookmark is a position in the WAL from which replay is possible: a copy of the
// streamer's slot that is never active. It keeps all WAL since then on the server.
type Bookmark struct {
	Name     string
	LSN      pglogrepl.LSN // replay can begin here or later
	Retained int64         // bytes of WAL kept on the server
	Since    time.Time     // when it was added or last moved; zero before PostgreSQL 17, which does not record it
	State    string        // PostgreSQL's wal_status, with the reason when it is lost
	Lost     bool          // PostgreSQL has removed WAL it needs

	slot string
}

// Bookmarks are those of one slot. Not safe for concurrent use.
type Bookmarks struct {
	conn *pgx.Conn
	slot string
}

// OpenBookmarks connects; the caller closes.
func OpenBookmarks(ctx context.Context, url, slot string) (*Bookmarks, error) {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: url}, postgres.Options{Application: "diehard-streamer-bookmark"})
	if err != nil {
		return nil, err
	}
	return &Bookmarks{conn: conn, slot: slot}, nil
}

// Close ends the connection.
func (b *Bookmarks) Close() { closeConn(b.conn) }

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it is gone either way
}

const (
	infix       = "_bm_"
	maxSlotName = 63 // PostgreSQL's NAMEDATALEN
)

// BookmarkOf returns the name of the bookmark that a replication slot is; empty if it is none of the streamer's slot.
func BookmarkOf(streamer, slot string) string {
	name, ok := strings.CutPrefix(slot, streamer+infix)
	if !ok {
		return ""
	}
	return name
}

var validName = regexp.MustCompile(`^[a-z0-9_]+$`)

// slotName is the replication slot behind a bookmark.
func (b *Bookmarks) slotName(name string) (string, error) {
	slot := b.slot + infix + name
	switch {
	case !validName.MatchString(name):
		return "", fmt.Errorf("bookmark name %q: use lower-case letters, digits and _", name)
	case len(slot) > maxSlotName:
		return "", fmt.Errorf("bookmark name %q is too long: at most %d characters with slot %s", name, maxSlotName-len(b.slot)-len(infix), b.slot)
	}
	return slot, nil
}

// Add copies the streamer's slot, which goes on undisturbed. Everything that the
// streamer has not confirmed yet, and all that follows, can be replayed from it.
func (b *Bookmarks) Add(ctx context.Context, name string) (Bookmark, error) {
	slot, err := b.slotName(name)
	if err != nil {
		return Bookmark{}, err
	}
	_, err = b.conn.Exec(ctx, `SELECT pg_catalog.pg_copy_logical_replication_slot($1, $2, false)`, b.slot, slot)
	if err != nil {
		return Bookmark{}, fmt.Errorf("add bookmark %s: %w", name, b.explain(err))
	}
	return b.Get(ctx, name)
}

// explain adds what to do about an error of a slot function.
func (b *Bookmarks) explain(err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	hint := map[string]string{
		pgerrcode.UndefinedObject:              "the streamer creates slot " + b.slot + " when it first runs; `streamer bookmark list` shows the bookmarks",
		pgerrcode.DuplicateObject:              "choose another name, or roll that bookmark forward with `streamer bookmark move`",
		pgerrcode.ConfigurationLimitExceeded:   "raise max_replication_slots and restart PostgreSQL, or drop a bookmark",
		pgerrcode.ObjectNotInPrerequisiteState: "PostgreSQL has removed WAL that the slot needs",
		pgerrcode.ObjectInUse:                  "a walsender streams from it",
		pgerrcode.InsufficientPrivilege:        "the role needs the attribute REPLICATION",
	}[pg.Code]
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

// List returns the bookmarks of the slot, oldest position first.
func (b *Bookmarks) List(ctx context.Context) ([]Bookmark, error) {
	rows, err := b.conn.Query(ctx, `
		SELECT slot_name, coalesce(confirmed_flush_lsn, '0/0')::text,
		       coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn), 0)::bigint,
		       (to_jsonb(s)->>'inactive_since')::timestamptz, coalesce(wal_status, ''), coalesce(to_jsonb(s)->>'invalidation_reason', '')
		FROM pg_catalog.pg_replication_slots s
		WHERE slot_type = 'logical' AND database = current_database() AND starts_with(slot_name, $1)
		ORDER BY confirmed_flush_lsn, slot_name`, b.slot+infix)
	if err != nil {
		return nil, fmt.Errorf("list bookmarks: %w", err)
	}
	list, err := pgx.CollectRows(rows, b.scan)
	if err != nil {
		return nil, fmt.Errorf("list bookmarks: %w", err)
	}
	return list, nil
}

func (b *Bookmarks) scan(row pgx.CollectableRow) (Bookmark, error) {
	var m Bookmark
	var lsn, reason string
	var since *time.Time
	if err := row.Scan(&m.slot, &lsn, &m.Retained, &since, &m.State, &reason); err != nil {
		return m, err
	}
	m.Name = BookmarkOf(b.slot, m.slot)
	m.Lost = m.State == "lost" || reason != ""
	if reason != "" {
		m.State = "lost: " + reason
	}
	if since != nil {
		m.Since = *since
	}
	var err error
	m.LSN, err = pglogrepl.ParseLSN(lsn)
	return m, err
}

// ErrNoBookmark means that there is no bookmark of that name.
var ErrNoBookmark = errors.New("no such bookmark")

// Get returns one bookmark.
//
// Errors: ErrNoBookmark.
func (b *Bookmarks) Get(ctx context.Context, name string) (Bookmark, error) {
	if _, err := b.slotName(name); err != nil {
		return Bookmark{}, err
	}
	list, err := b.List(ctx)
	if err != nil {
		return Bookmark{}, err
	}
	for _, m := range list {
		if m.Name == name {
			return m, nil
		}
	}
	return Bookmark{}, fmt.Errorf("%w: %s; %s", ErrNoBookmark, name, describe(list))
}

// describe lists the bookmarks for an operator.
func describe(list []Bookmark) string {
	if len(list) == 0 {
		return "there are none: `streamer bookmark add NAME` adds one"
	}
	texts := make([]string, len(list))
	for i, m := range list {
		texts[i] = fmt.Sprintf("%s at %s", m.Name, m.LSN)
		if m.Lost {
			texts[i] = m.Name + " (lost)"
		}
	}
	return "there are " + strings.Join(texts, ", ")
}

// Move rolls a bookmark forward to an LSN, letting PostgreSQL remove the WAL
// before it. to = 0 is what the streamer has confirmed, which is also the
// furthest: nothing behind that needs to be replayed yet.
func (b *Bookmarks) Move(ctx context.Context, name string, to pglogrepl.LSN) (Bookmark, error) {
	m, err := b.Get(ctx, name)
	if err != nil {
		return m, err
	}
	confirmed, err := confirmedFlush(ctx, b.conn, b.slot)
	switch {
	case err != nil:
		return m, err
	case to == 0:
		to = confirmed
	case to > confirmed:
		return m, fmt.Errorf("move bookmark %s: the streamer has confirmed %s only, and %s lies behind that", name, confirmed, to)
	}
	if to < m.LSN {
		return m, fmt.Errorf("move bookmark %s: it is at %s and can only move forward, not to %s", name, m.LSN, to)
	}
	if to == m.LSN {
		return m, nil
	}
	if _, err := b.conn.Exec(ctx, `SELECT pg_catalog.pg_replication_slot_advance($1, $2::pg_lsn)`, m.slot, to.String()); err != nil {
		return m, fmt.Errorf("move bookmark %s: %w", name, b.explain(err))
	}
	return b.Get(ctx, name)
}

// Drop removes a bookmark. Errors: ErrNoBookmark.
func (b *Bookmarks) Drop(ctx context.Context, name string) error {
	m, err := b.Get(ctx, name)
	if err != nil {
		return err
	}
	if _, err := b.conn.Exec(ctx, `SELECT pg_catalog.pg_drop_replication_slot($1)`, m.slot); err != nil {
		return fmt.Errorf("drop bookmark %s: %w", name, b.explain(err))
	}
	return nil
}

// confirmedFlush is what the streamer of a slot has confirmed.
func confirmedFlush(ctx context.Context, conn *pgx.Conn, slot string) (pglogrepl.LSN, error) {
	confirmed, err := replication.Confirmed(ctx, conn, slot)
	if errors.Is(err, replication.ErrNoSlot) {
		return 0, fmt.Errorf("slot %s does not exist: run `streamer slot create` and start the streamer first", slot)
	}
	return confirmed, err
}
