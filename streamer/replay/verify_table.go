package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// VerifyTable compares every row of the outbox in span with event_log, by its id,
// and then every event of event_log that was committed in span with the outbox.
// The streamer must be running. limit is how many differences are kept.
//
// What retention has dropped from the outbox is not looked at: extra rows are
// searched from the beginning of the oldest partition.
func VerifyTable(ctx context.Context, c Config, span Span, limit int) (Verdict, error) {
	var verdict Verdict
	if !span.Until.IsZero() && span.Until.Before(span.Since) {
		return verdict, errEmptySpan
	}
	s, err := c.open(ctx)
	if err != nil {
		return verdict, err
	}
	defer s.guard.Close()
	o, err := s.outbox(ctx, span)
	if err != nil {
		return verdict, err
	}
	defer closeConn(o.conn)
	v := s.verifier(limit, &verdict)
	if v.reused, err = o.reusedIDs(ctx); err != nil {
		return verdict, err
	}
	if err := o.each(ctx, v.outboxRows); err != nil {
		return verdict, err
	}
	if err := s.compareReused(ctx, v, span); err != nil {
		return verdict, err
	}
	if verdict.Messages = s.messages != 0; verdict.Messages {
		return verdict, nil
	}
	return verdict, s.extras(ctx, v, o.conn, span)
}

// outboxRows compares rows of the outbox, which have no positions, by id. Those whose
// id is used more than once are compareReused's.
func (v *verifier) outboxRows(ctx context.Context, rows *decode.Rows, _ pglogrepl.LSN) error {
	deadLetters, present := make(map[uuid.UUID]bool), make(map[uuid.UUID][]logRow)
	ids := idsOf(rows, 0, rows.Len())
	for _, r := range rows.Rejects {
		ids = append(ids, r.ID)
	}
	if err := v.log.deadLettersByID(ctx, anySource, ids, func(id uuid.UUID) { deadLetters[id] = true }); err != nil {
		return err
	}
	if err := v.log.byID(ctx, anySource, rows, func(r logRow) { present[r.ID] = append(present[r.ID], r) }); err != nil {
		return err
	}
	v.verdict.Read += int64(rows.Len() + len(rows.Rejects))
	for i := range rows.Len() {
		id := rows.IDAt(i)
		if v.reused[id] {
			delete(present, id)
			continue
		}
		switch found := present[id]; {
		case len(found) > 0:
			r, rest, _ := take(found, contentAt(rows, i), true)
			v.same(rows, i, r)
			present[id] = rest
		case deadLetters[id]:
			v.verdict.DeadLetters++
		default:
			v.note(Difference{Kind: Missing, ID: id})
		}
	}
	for _, r := range rows.Rejects {
		if v.reused[r.ID] {
			continue
		}
		if deadLetters[r.ID] {
			v.verdict.DeadLetters++
		} else {
			v.note(Difference{Kind: Missing, ID: r.ID})
		}
	}
	for _, left := range present {
		for _, r := range left {
			v.note(Difference{Kind: Extra, ID: r.ID, Position: r.Position, What: "once more than in the outbox"})
		}
	}
	return nil
}

// extras looks for events in event_log that the outbox does not have. Both ends
// sort their ids, so that walking through them side by side takes no memory.
func (s *session) extras(ctx context.Context, v *verifier, conn *pgx.Conn, span Span) error {
	var oldest *time.Time
	err := conn.QueryRow(ctx, s.Origin.Schema.SQL(`SELECT min(starts_at) FROM {outbox}.diehard_partitions WHERE state <> 'detached'`)).Scan(&oldest)
	if err != nil || oldest == nil {
		return wrap(err)
	}
	if span.Since.Before(*oldest) {
		span.Since = *oldest
	}
	if span.Until.IsZero() {
		span.Until = time.Now().Add(clockSlack)
	}
	log, err := v.log.conn.Query(ctx, `SELECT event_id, commit_lsn, commit_seq FROM `+v.log.name+` WHERE source IN (?, ?)
		AND commit_time >= fromUnixTimestamp64Micro(toInt64(?), 'UTC') AND commit_time < fromUnixTimestamp64Micro(toInt64(?), 'UTC')
		ORDER BY toString(event_id)`, s.source.String(), tableSource(s.source).String(), span.Since.UnixMicro(), span.Until.UnixMicro())
	if err != nil {
		return fmt.Errorf("read %s: %w", v.log.name, sink.Classify(err))
	}
	defer log.Close()
	// After the query above, so that it shows every event of the other end.
	outbox, err := conn.Query(ctx, s.Origin.Schema.SQL(`SELECT id FROM {outbox}.outbox WHERE published_at >= $1 AND published_at < $2 ORDER BY id`),
		bound(span.Since, pgtype.NegativeInfinity), bound(span.Until, pgtype.Infinity))
	if err != nil {
		return wrap(err)
	}
	defer outbox.Close()
	return v.merge(ctx, s, log, outbox)
}

// ids is one end, in order.
type ids interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
}

// clockSlack is how far PostgreSQL's clock may be ahead of ours.
const clockSlack = 7 * 24 * time.Hour

// suspectsAtOnce bounds the ids that are looked up in the whole outbox together.
const suspectsAtOnce = 10_000

func (v *verifier) merge(ctx context.Context, s *session, log, outbox ids) error {
	var suspects []Difference
	var have uuid.UUID
	more := true
	for log.Next() {
		d := Difference{Kind: Extra}
		if err := log.Scan(&d.ID, (*uint64)(&d.LSN), &d.Seq); err != nil {
			return fmt.Errorf("read %s: %w", v.log.name, err)
		}
		for more && compareIDs(have, d.ID) < 0 {
			if more = outbox.Next(); more {
				if err := outbox.Scan(&have); err != nil {
					return wrap(err)
				}
			}
		}
		if more && have == d.ID {
			continue
		}
		if suspects = append(suspects, d); len(suspects) == suspectsAtOnce {
			if err := v.judge(ctx, s, suspects); err != nil {
				return err
			}
			suspects = suspects[:0]
		}
	}
	if err := errors.Join(log.Err(), outbox.Err()); err != nil {
		return err
	}
	return v.judge(ctx, s, suspects)
}

func compareIDs(a, b uuid.UUID) int {
	for i := range a {
		if a[i] != b[i] {
			return int(a[i]) - int(b[i])
		}
	}
	return 0
}

// judge separates events that were never committed from those of a transaction that
// began outside of the span.
func (v *verifier) judge(ctx context.Context, s *session, suspects []Difference) error {
	if len(suspects) == 0 {
		return nil
	}
	ids := make([]uuid.UUID, len(suspects))
	for i, d := range suspects {
		ids[i] = d.ID
	}
	rows, err := s.guard.Conn.Query(ctx, s.Origin.Schema.SQL(`SELECT DISTINCT id FROM {outbox}.outbox WHERE id = ANY($1)`), ids)
	if err != nil {
		return wrap(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return wrap(err)
	}
	known := make(map[uuid.UUID]bool, len(found))
	for _, id := range found {
		known[id] = true
	}
	for _, d := range suspects {
		if !known[d.ID] {
			v.note(d)
		}
	}
	return nil
}
