package replay

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/postgres"
	"diehard/streamer/decode"
)

// FromTable fills what of the outbox's rows is missing, whatever the WAL still
// holds. The streamer must be running. It may be repeated at any time.
//
// A row has its transaction's begin (created_at) for the time of its commit, and
// for its place the position in the WAL at which this replay began, and a number.
// Retention takes what was filled in this way as delivered.
//
// Errors: ErrBusy; the report holds what was done before an error.
func FromTable(ctx context.Context, c Config, span Span, m Mode) (Report, error) {
	began := time.Now()
	var report Report
	if !span.Until.IsZero() && span.Until.Before(span.Since) {
		return report, errEmptySpan
	}
	s, err := c.open(ctx)
	if err != nil {
		return report, err
	}
	defer s.guard.Close()
	report.Messages = s.messages != 0
	f, err := s.filler(ctx, tableSource(s.source), m, &report)
	if err != nil {
		return report, err
	}
	o, err := s.outbox(ctx, span)
	if err != nil {
		return report, err
	}
	defer closeConn(o.conn)
	t := &table{filler: f}
	if err = o.each(ctx, t.fill); err == nil && m == (Mode{}) {
		err = s.delivered(ctx, span)
	}
	report.Took = time.Since(began)
	return report, err
}

func (s *session) outbox(ctx context.Context, span Span) (*outbox, error) {
	conn, err := postgres.Connect(ctx, s.PostgresURL, "diehard-streamer-replay")
	if err != nil {
		return nil, err
	}
	return &outbox{conn: conn, guard: s.guard, span: span, filter: s.Shard.Filter(), limits: s.Limits, log: s.Log, progress: s.Progress}, nil
}

// delivered lets retention drop partitions that lie before the slot was made:
// their rows are in event_log, or set aside, now. A span with an end closes no gap
// that reaches up to the slot.
func (s *session) delivered(ctx context.Context, span Span) error {
	if !span.Until.IsZero() {
		return nil
	}
	_, err := s.guard.Conn.Exec(ctx, `UPDATE public.streamer_slot SET delivered_since = least(delivered_since, $2) WHERE slot_name = $1`,
		s.Slot, bound(span.Since, pgtype.NegativeInfinity))
	if err != nil {
		return fmt.Errorf("note what is delivered: %w", err)
	}
	return nil
}

// table gives rows from the outbox their places.
type table struct {
	*filler
	at decode.Position // of the last row
}

func (t *table) fill(ctx context.Context, rows *decode.Rows, settled pglogrepl.LSN) error {
	if t.at.LSN == 0 {
		t.at.LSN = settled
	}
	for i := range rows.Rejects {
		rows.Rejects[i].Position = t.next()
	}
	return t.filler.fill(ctx, rows, func(ctx context.Context) (gap, error) { return t.compare(ctx, rows) },
		func(int) decode.Position { return t.next() })
}

// next is a place that no other row of this source has: no two replays begin at the same position.
func (t *table) next() decode.Position {
	if t.at.Seq == math.MaxUint32 {
		t.at.LSN, t.at.Seq = t.at.LSN+1, 0 // within the record that settled the beginning
	}
	t.at.Seq++
	return t.at
}

// compare tells what is missing, by id. Dead letters are read first, as in filler.compare.
func (t *table) compare(ctx context.Context, rows *decode.Rows) (gap, error) {
	var g gap
	aside, there := make(map[uuid.UUID]bool), make(map[uuid.UUID]bool)
	if t.letters {
		ids := idsOf(rows, 0, rows.Len())
		for _, r := range rows.Rejects {
			ids = append(ids, r.ID)
		}
		if err := t.log.lettersByID(ctx, anybody, ids, func(id uuid.UUID) { aside[id] = true }); err != nil {
			return g, err
		}
	}
	if err := t.log.present(ctx, anybody, rows, func(id uuid.UUID) { there[id] = true }); err != nil {
		return g, err
	}
	for i := range rows.Len() {
		switch id := rows.IDAt(i); {
		case there[id]:
			g.there++
		case aside[id]:
			g.setAside++
		default:
			g.rows = append(g.rows, i)
			there[id] = true // once, if it is in the outbox twice
		}
	}
	for i, r := range rows.Rejects {
		if aside[r.ID] {
			g.setAside++
		} else {
			g.rejects = append(g.rejects, i)
		}
	}
	return g, nil
}
