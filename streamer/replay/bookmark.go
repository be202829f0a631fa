package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
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
	Name string
	// Slot is the copy. Replay can begin at its ConfirmedFlush or later; it is inactive since
	// the bookmark was added or last moved, which PostgreSQL records from version 17 on.
	Slot replication.Slot
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
	rows, err := b.conn.Query(ctx, replication.LogicalSlots)
	if err != nil {
		return nil, fmt.Errorf("list bookmarks: %w", err)
	}
	slots, err := pgx.CollectRows(rows, replication.ScanSlot)
	if err != nil {
		return nil, fmt.Errorf("list bookmarks: %w", err)
	}
	var list []Bookmark
	for _, s := range slots {
		if name := BookmarkOf(b.slot, s.Name); name != "" {
			list = append(list, Bookmark{Name: name, Slot: s})
		}
	}
	slices.SortStableFunc(list, func(a, b Bookmark) int { return cmp.Compare(a.Slot.ConfirmedFlush, b.Slot.ConfirmedFlush) })
	return list, nil
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
		texts[i] = fmt.Sprintf("%s at %s", m.Name, m.Slot.ConfirmedFlush)
		if m.Slot.Lost() {
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
	at := m.Slot.ConfirmedFlush
	if to < at {
		return m, fmt.Errorf("move bookmark %s: it is at %s and can only move forward, not to %s", name, at, to)
	}
	if to == at {
		return m, nil
	}
	if _, err := b.conn.Exec(ctx, `SELECT pg_catalog.pg_replication_slot_advance($1, $2::pg_lsn)`, m.Slot.Name, to.String()); err != nil {
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
	if _, err := b.conn.Exec(ctx, `SELECT pg_catalog.pg_drop_replication_slot($1)`, m.Slot.Name); err != nil {
		return fmt.Errorf("drop bookmark %s: %w", name, b.explain(err))
	}
	return nil
}

// confirmedFlush is what the streamer of a slot has confirmed.
func confirmedFlush(ctx context.Context, conn *pgx.Conn, slot string) (pglogrepl.LSN, error) {
	s, err := replication.ReadSlot(ctx, conn, slot)
	if errors.Is(err, replication.ErrNoSlot) {
		return 0, fmt.Errorf("slot %s does not exist: run `streamer slot create` and start the streamer first", slot)
	}
	return s.ConfirmedFlush, err
}
