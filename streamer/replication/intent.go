package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgerrcode"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// Position is a row's place in the stream: the LSN of its commit and its number in
// the transaction. As text it is "0/16B3748#3".
type Position struct {
	LSN pglogrepl.LSN
	Seq uint32
}

// MarshalText implements [encoding.TextMarshaler].
func (p Position) MarshalText() ([]byte, error) {
	return []byte(p.String()), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *Position) UnmarshalText(text []byte) error {
	lsn, seq, _ := strings.Cut(string(text), "#")
	n, err := strconv.ParseUint(seq, 10, 32)
	if err != nil {
		return fmt.Errorf("position %q: %w", text, err)
	}
	if p.LSN, err = pglogrepl.ParseLSN(lsn); err != nil {
		return fmt.Errorf("position %q: %w", text, err)
	}
	p.Seq = uint32(n)
	return nil
}

func (p Position) String() string { return fmt.Sprintf("%s#%d", p.LSN, p.Seq) }

// IntentVersion is the version of the intents that this streamer writes. Another one
// means that the same WAL may become another block.
const IntentVersion = 1

// Intent is a range of rows that a streamer is about to write, and all that decides
// the bytes of its blocks beside the WAL.
type Intent struct {
	Version int      `json:"version"`
	After   Position `json:"after"`   // the last row before the range
	Through Position `json:"through"` // the last row of the range
	Token   string   `json:"token"`   // insert_deduplication_token of the first table's block
	// IngestedAt is in milliseconds since 1970. It decides the partition.
	IngestedAt int64 `json:"ingested_at"`
	// InsertTimeout is the longest time limit of the inserts that may be under way, in milliseconds.
	InsertTimeout int64 `json:"insert_timeout"`
	// Blocks were written before this one within the time that an insert may be under way.
	Blocks int `json:"blocks"`
	// Unanswered: an insert that had no answer may be under way, under this token or an older one.
	Unanswered bool          `json:"unanswered,omitempty"`
	Tables     []IntentTable `json:"tables"`
	// LocalOnly is REPLICATION_ORIGIN = none, which decides the rows of the range.
	LocalOnly bool `json:"local_only,omitempty"`
}

// IntentTable is a target of an Intent.
type IntentTable struct {
	Name     string     `json:"name"`
	Rejected []Rejected `json:"rejected,omitempty"`
}

// Rejected are rows that ClickHouse refuses with one error code. They are named by position: a
// session that repeats the range may be sent its end alone, if the rest is confirmed.
type Rejected struct {
	Code    int32            `json:"code"`
	Commits []RejectedCommit `json:"commits"`
}

// RejectedCommit are rows of one transaction, by their numbers in it.
type RejectedCommit struct {
	LSN  pglogrepl.LSN `json:"lsn"`
	Seqs []uint32      `json:"seqs"`
}

// Add adds a row, behind those that were added before.
func (r *Rejected) Add(p Position) {
	if n := len(r.Commits); n == 0 || r.Commits[n-1].LSN != p.LSN {
		r.Commits = append(r.Commits, RejectedCommit{LSN: p.LSN})
	}
	last := &r.Commits[len(r.Commits)-1]
	last.Seqs = append(last.Seqs, p.Seq)
}

// Positions are those of the rows.
func (r *Rejected) Positions() iter.Seq[Position] {
	return func(yield func(Position) bool) {
		for _, c := range r.Commits {
			for _, seq := range c.Seqs {
				if !yield(Position{c.LSN, seq}) {
					return
				}
			}
		}
	}
}

// Len is the number of rows.
func (r *Rejected) Len() (n int) {
	for _, c := range r.Commits {
		n += len(c.Seqs)
	}
	return n
}

// Empty reports that there is nothing to write.
func (i *Intent) Empty() bool { return i == nil || i.After == i.Through }

// IntentRecord is a row of the table diehard_intent.
type IntentRecord struct {
	SystemID string
	Timeline uint32
	// Epoch is raised by each session that takes the slot; 0 when there is no row.
	Epoch int64
	// Confirm is the highest position that may have been confirmed.
	Confirm pglogrepl.LSN
	Intent  *Intent // nil: nothing was written yet
	// UnprovedSince is set after a failover whose slot stands beyond what is recorded, and when
	// the publication was changed: the events published from this time on have to be found in ClickHouse.
	// So, too, while a new record's streamer waits for inserts of an older timeline.
	UnprovedSince *time.Time
	// UnprovedUntil is set after a failover: the events up to this commit that the slot delivers again
	// have to be found in ClickHouse. 0: none.
	UnprovedUntil pglogrepl.LSN
	WrittenAt     time.Time
}

// BeingCreated reports that the slot's creation has begun and was not recorded as done.
func (r IntentRecord) BeingCreated() bool { return r.Epoch > 0 && r.Confirm == 0 }

// ErrForeignReader means that the slot stands beyond what this streamer may have confirmed.
var ErrForeignReader = errors.New("the slot was advanced by something other than this streamer")

// RefuseForeignReader describes what happened to the slot since rec was written.
//
// Errors: always, failure.Fatal.
func RefuseForeignReader(slot Slot, rec IntentRecord) error {
	return failure.Because(failure.SlotLost, refuse("%w: slot %s stands at %s and was confirmed up to %s at most (%s). Events in between may be missing in ClickHouse. "+
		"Find what read the slot (pg_recvlogical, pg_replication_slot_advance, a tool that made the slot anew); "+
		"then run `streamer slot accept`, which goes on with what the slot still has, and `streamer replay --from-table`",
		ErrForeignReader, slot.Name, slot.ConfirmedFlush, rec.Confirm, rec.WrittenAt.UTC().Format(time.RFC3339)))
}

const intentColumns = `system_id, timeline, epoch, confirm_lsn, intent, unproved_since, coalesce(unproved_until, '0/0'), written_at`

type rowScanner interface{ Scan(dest ...any) error }

func scanIntent(row rowScanner) (IntentRecord, error) {
	var r IntentRecord
	var timeline int64
	var intent []byte
	if err := row.Scan(&r.SystemID, &timeline, &r.Epoch, &r.Confirm, &intent, &r.UnprovedSince, &r.UnprovedUntil, &r.WrittenAt); err != nil {
		return IntentRecord{}, err
	}
	r.Timeline = uint32(timeline) //nolint:gosec // timelines are 32 bits wide
	if intent == nil {
		return r, nil
	}
	r.Intent = new(Intent)
	if err := json.Unmarshal(intent, r.Intent); err != nil {
		return IntentRecord{}, failure.Wrap(failure.Fatal, fmt.Errorf("read diehard_intent: %w", err))
	}
	return r, nil
}

// ReadIntent returns the slot's record; the zero IntentRecord when there is none. Until
// ClaimIntent a predecessor may still change it.
func (c *Control) ReadIntent(ctx context.Context) (IntentRecord, error) {
	rows, err := c.conn.Query(ctx, c.schema.SQL(`SELECT `+intentColumns+` FROM {outbox}.diehard_intent WHERE slot_name = $1`), c.slot)
	if err != nil {
		return IntentRecord{}, classify(fmt.Errorf("read diehard_intent (has `streamer migrate up` run?): %w", err))
	}
	defer rows.Close()
	var r IntentRecord
	if rows.Next() {
		if r, err = scanIntent(rows); err != nil {
			return IntentRecord{}, err
		}
	}
	if err := rows.Err(); err != nil {
		return IntentRecord{}, classify(fmt.Errorf("read diehard_intent (has `streamer migrate up` run?): %w", err))
	}
	return r, nil
}

func (c *Control) deleteIntent(ctx context.Context) error {
	if _, err := c.conn.Exec(ctx, c.schema.SQL(`SELECT {outbox}.diehard_intent_delete($1::text)`), c.slot); err != nil {
		return classify(fmt.Errorf("delete slot %s from diehard_intent: %w", c.slot, err))
	}
	return nil
}

// WALEnd returns the end of the server's WAL.
func (c *Control) WALEnd(ctx context.Context) (lsn pglogrepl.LSN, err error) {
	if err = c.conn.QueryRow(ctx, `SELECT pg_catalog.pg_current_wal_insert_lsn()`).Scan(&lsn); err != nil {
		return 0, classify(fmt.Errorf("read the end of the WAL: %w", err))
	}
	return lsn, nil
}

// ClaimIntent raises the epoch, so that a predecessor's WriteIntent fails from here on,
// and returns the record. owner must hold the slot. The first claim of a slot makes the record.
//
// Errors: ErrFenced; errSlotCreated when the slot is being created once more.
func (c *Control) ClaimIntent(ctx context.Context, owner Owner, systemID string, timeline uint32) (IntentRecord, error) {
	if err := c.VerifyOwner(ctx, owner); err != nil {
		return IntentRecord{}, err
	}
	r, err := scanIntent(c.conn.QueryRow(ctx, c.schema.SQL(`SELECT `+intentColumns+` FROM {outbox}.diehard_intent_claim($1::text, $2::text, $3::bigint)`),
		c.slot, systemID, int64(timeline)))
	if err != nil {
		return r, classify(fmt.Errorf("claim slot %s in diehard_intent (has `streamer migrate up` run?): %w", c.slot, err))
	}
	if r.BeingCreated() {
		return r, errSlotCreated
	}
	return r, nil
}

// WriteIntent proves what VerifyOwner proves and replaces the record, in one statement;
// the record is durable when it returns. A claim of another session that came first makes it
// fail, one that comes later reads rec. walEnd is the end of the WAL shortly before rec's commit.
//
// Errors: ErrFenced; ErrPublicationChanged.
func (c *Control) WriteIntent(ctx context.Context, owner Owner, rec IntentRecord) (walEnd pglogrepl.LSN, err error) {
	intent, err := json.Marshal(rec.Intent)
	if err != nil {
		return 0, fmt.Errorf("write diehard_intent: %w", err)
	}
	var ours bool
	var published *string
	var written *bool
	err = c.conn.QueryRow(ctx, c.schema.SQL(`
		SELECT ours, published,
		       CASE WHEN ours AND published = $5 THEN {outbox}.diehard_intent_write($1::text, $6::bigint, $7::text, $8::bigint, $9::pg_lsn, $10::jsonb, $11::timestamptz, nullif($12::pg_lsn, '0/0')) END,
		       pg_catalog.pg_current_wal_insert_lsn()
		FROM (SELECT `+ownsSlot+` AS ours, `+publishedState+` AS published OFFSET 0) AS proof`),
		c.slot, owner.pid(), owner.Application, c.publication, c.published,
		rec.Epoch, rec.SystemID, int64(rec.Timeline), rec.Confirm, string(intent), rec.UnprovedSince, rec.UnprovedUntil).
		Scan(&ours, &published, &written, &walEnd)
	switch {
	case err != nil:
		return 0, classify(fmt.Errorf("write diehard_intent: %w", err))
	case !ours:
		return 0, ErrFenced
	case published == nil || *published != c.published:
		return 0, ErrPublicationChanged
	case written == nil || !*written:
		return 0, ErrFenced
	}
	return walEnd, nil
}

// ErrEnough ends PublishedSince without an error.
var ErrEnough = errors.New("enough")

// publishedPage is the number of ids that PublishedSince passes at once.
const publishedPage = 5000

// Published chooses events of the outbox.
type Published struct {
	Since time.Time // when their transactions began, or later
	// Open adds those of transactions that were open at Preflight, whenever they began. When that
	// was, PostgreSQL shows to the role of those sessions alone; so they are known by their
	// numbers, for which the whole outbox is read.
	Open bool
}

// PublishedSince passes the ids of this shard's events to page, in pieces, those of partitions
// that are detached included. page may end it with ErrEnough.
func (c *Control) PublishedSince(ctx context.Context, which Published, page func([]uuid.UUID) error) error {
	if err := c.publishedIn(ctx, c.table(), which, page); err != nil {
		return notEnough(err)
	}
	// What leaves the outbox meanwhile was read there, or is in the next list.
	read := map[string]bool{}
	for {
		tables, err := c.detached(ctx)
		if err != nil {
			return err
		}
		more := false
		for _, table := range tables {
			if read[table] {
				continue
			}
			read[table], more = true, true
			err := c.publishedIn(ctx, table, which, page)
			if postgres.IsCode(err, pgerrcode.UndefinedTable) { // dropped: it was delivered
				continue
			}
			if err != nil {
				return notEnough(err)
			}
		}
		if !more {
			return nil
		}
	}
}

func (c *Control) detached(ctx context.Context) ([]string, error) {
	var tables []string
	err := c.conn.QueryRow(ctx, c.schema.SQL(`SELECT coalesce(array_agg(format('%I.%I', $1::text, partition)), '{}') FROM {outbox}.diehard_partitions WHERE state = 'detached'`),
		c.schema.Name()).Scan(&tables)
	if err != nil {
		return nil, classify(fmt.Errorf("read the outbox's detached partitions: %w", err))
	}
	return tables, nil
}

func (c *Control) publishedIn(ctx context.Context, table string, which Published, page func([]uuid.UUID) error) error {
	args := []any{which.Since, c.slot}
	began := `published_at >= $1::timestamptz`
	if which.Open {
		args = append(args, c.oldest)
		began = `(` + began + ` OR age(xmin) <= age($3::text::xid8::xid))`
	}
	// The slot delivers what was published since it was recorded, and what was written since its creation began.
	query := c.schema.SQL(`SELECT id FROM ` + table + ` WHERE ` + began + ` AND (published_at >= coalesce(
		(SELECT delivered_since FROM {outbox}.diehard_slot WHERE slot_name = $2 AND delivered_since < 'infinity'), '-infinity')
		OR age(xmin) <= age((SELECT i.began::xid FROM {outbox}.diehard_intent AS i WHERE i.slot_name = $2)))`)
	if filter := c.from.Shard.Filter(); filter != "" {
		query += ` AND ` + filter
	}
	if c.from.LocalOnly && c.tracksOrigins(ctx) {
		query += ` AND coalesce((pg_catalog.pg_xact_commit_timestamp_origin(xmin)).roident, 0) = 0`
	}
	rows, err := c.conn.Query(ctx, query, args...)
	if err != nil {
		return classify(fmt.Errorf("read the outbox: %w", err))
	}
	defer rows.Close()
	ids := make([]uuid.UUID, 0, publishedPage)
	for rows.Next() {
		var id uuid.UUID
		if err := rows.Scan((*[16]byte)(&id)); err != nil {
			return fmt.Errorf("read the outbox: %w", err)
		}
		if ids = append(ids, id); len(ids) < publishedPage {
			continue
		}
		if err := page(ids); err != nil {
			return err
		}
		ids = ids[:0]
	}
	if err := rows.Err(); err != nil {
		return classify(fmt.Errorf("read the outbox: %w", err))
	}
	if len(ids) == 0 {
		return nil
	}
	return page(ids)
}

// tracksOrigins reports whether PostgreSQL knows which rows a subscription wrote.
func (c *Control) tracksOrigins(ctx context.Context) (on bool) {
	err := c.conn.QueryRow(ctx, `SELECT current_setting('track_commit_timestamp')::boolean`).Scan(&on)
	return err == nil && on
}

func notEnough(err error) error {
	if errors.Is(err, ErrEnough) {
		return nil
	}
	return err
}
