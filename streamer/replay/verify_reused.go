package replay

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"diehard/shared/event"
	"diehard/streamer/decode"
)

const (
	// maxReused bounds the memory for ids that are used more than once.
	maxReused = 1_000_000
	// reusedAtOnce is for how many of them the outbox is read once.
	reusedAtOnce = 10_000
)

// reusedIDs returns the ids that several rows of the outbox have, which is allowed.
// Such rows are compared as a whole: only the content distinguishes them.
func (o *outbox) reusedIDs(ctx context.Context) (map[uuid.UUID]bool, error) {
	where := ""
	if o.filter != "" {
		where = " WHERE " + o.filter
	}
	rows, err := o.conn.Query(ctx, o.schema.SQL(`SELECT id FROM {outbox}.`+event.Table)+where+` GROUP BY id HAVING count(*) > 1 LIMIT $1`, maxReused+1)
	if err != nil {
		return nil, wrap(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, wrap(err)
	}
	if len(ids) > maxReused {
		return nil, fmt.Errorf("more than %d ids of the outbox are used more than once, too many to compare: "+
			"use `streamer verify --from-bookmark`, which compares by position", maxReused)
	}
	reused := make(map[uuid.UUID]bool, len(ids))
	for _, id := range ids {
		reused[id] = true
	}
	return reused, nil
}

// reusedEvent is one of the rows of the outbox that share an id.
type reusedEvent struct {
	content
	chosen bool // it lies in the span
	reject bool // it cannot be decoded
}

// compareReused compares the rows of reused ids, of the whole outbox and of event_log,
// as multisets, and counts those in span.
func (s *session) compareReused(ctx context.Context, v *verifier, span Span) error {
	for ids := range slices.Chunk(slices.Collect(maps.Keys(v.reused)), reusedAtOnce) {
		sent, err := s.readReused(ctx, ids, span)
		if err != nil {
			return err
		}
		deadLetters, written := make(map[uuid.UUID]bool), make(map[uuid.UUID][]logRow)
		if err := v.log.deadLettersByID(ctx, anySource, ids, func(id uuid.UUID) { deadLetters[id] = true }); err != nil {
			return err
		}
		if err := v.log.byIDs(ctx, ids, func(r logRow) { written[r.ID] = append(written[r.ID], r) }); err != nil {
			return err
		}
		for _, id := range ids {
			v.compareMultisets(id, sent[id], written[id], deadLetters[id])
		}
	}
	return nil
}

// readReused reads the rows of ids once the streamer has confirmed them.
func (s *session) readReused(ctx context.Context, ids []uuid.UUID, span Span) (map[uuid.UUID][]reusedEvent, error) {
	o, err := s.outbox(ctx, Span{})
	if err != nil {
		return nil, err
	}
	defer closeConn(o.conn)
	o.ids, o.progress = ids, func(uint64, uint64) {}
	sent := make(map[uuid.UUID][]reusedEvent)
	inSpan := func(micros int64) bool {
		at := time.UnixMicro(micros)
		return !at.Before(span.Since) && (span.Until.IsZero() || at.Before(span.Until))
	}
	err = o.each(ctx, func(_ context.Context, rows *decode.Rows, _ pglogrepl.LSN) error {
		for i := range rows.Len() {
			id := rows.IDAt(i)
			sent[id] = append(sent[id], reusedEvent{content: contentAt(rows, i), chosen: inSpan(rows.CommitTime[i])})
		}
		for _, r := range rows.Rejects {
			sent[r.ID] = append(sent[r.ID], reusedEvent{reject: true, chosen: inSpan(r.CommitTime)})
		}
		return nil
	})
	return sent, err
}

// compareMultisets pairs rows that are equal, then those that are not.
func (v *verifier) compareMultisets(id uuid.UUID, sent []reusedEvent, written []logRow, deadLetter bool) {
	var unpaired []reusedEvent
	for _, e := range sent {
		r, rest, ok := take(written, e.content, false)
		if !ok || e.reject {
			unpaired = append(unpaired, e)
			continue
		}
		written = rest
		if e.chosen {
			v.count(id, r, "")
		}
	}
	for _, e := range unpaired {
		r, rest, ok := take(written, e.content, !e.reject)
		switch {
		case ok:
			written = rest
			if e.chosen {
				v.count(id, r, e.differences(r.content))
			}
		case !e.chosen:
		case deadLetter:
			v.verdict.DeadLetters++
		default:
			v.note(Difference{Kind: Missing, ID: id})
		}
	}
	for _, r := range written {
		v.note(Difference{Kind: Extra, ID: id, Position: r.Position, What: "once more than in the outbox"})
	}
}
