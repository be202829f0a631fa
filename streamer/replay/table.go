package replay

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/postgres"
	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// FromTable fills what of the outbox's rows is missing, whatever the WAL still
// holds. The streamer must be running. It may be repeated at any time.
//
// A row has its transaction's begin (published_at) for the time of its commit, and
// for its position the position in the WAL at which this replay began, and a number.
// Retention takes rows filled in this way for delivered.
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
	f, err := s.filler(ctx, tableSource(s.source), sink.OnTimeline(s.guard.Timeline), m, &report)
	if err != nil {
		return report, err
	}
	o, err := s.outbox(ctx, span)
	if err != nil {
		return report, err
	}
	defer closeConn(o.conn)
	reused, err := o.reusedIDs(ctx)
	if err != nil {
		return report, err
	}
	t := &tableFiller{filler: f}
	o.without = slices.Collect(maps.Keys(reused))
	if err = o.each(ctx, t.fillRows); err == nil && len(reused) > 0 {
		o.without = nil
		err = t.fillReused(ctx, s, o, reused)
	}
	if err == nil && m == (Mode{}) {
		err = s.delivered(ctx, span)
	}
	report.Took = time.Since(began)
	return report, err
}

func (s *session) outbox(ctx context.Context, span Span) (*outbox, error) {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: s.PostgresURL, Schema: s.Origin.Schema}, postgres.Options{Application: "diehard-streamer-replay", Outbox: true})
	if err != nil {
		return nil, err
	}
	return &outbox{conn: conn, guard: s.guard, span: span, schema: s.Origin.Schema, filter: s.Origin.Shard.Filter(), limits: s.Limits, log: s.Log, progress: s.Progress}, nil
}

// delivered lets retention drop partitions that lie before the slot was made:
// their rows are in event_log, or in the dead-letter table, now. A span with an end closes no gap
// that reaches up to the slot.
func (s *session) delivered(ctx context.Context, span Span) error {
	if !span.Until.IsZero() {
		return nil
	}
	_, err := s.guard.Conn.Exec(ctx, s.Origin.Schema.SQL(`SELECT {outbox}.diehard_slot_delivered($1::text, $2::timestamptz)`),
		s.Origin.SlotName(), bound(span.Since, pgtype.NegativeInfinity))
	if err != nil {
		return fmt.Errorf("note what is delivered: %w", err)
	}
	return nil
}

// tableFiller gives rows of the outbox their positions and fills what is missing.
type tableFiller struct {
	filler *filler
	at     decode.Position // of the last row

	// Of ids that are used more than once: what the outbox has, and what a dry run has
	// counted as missing; nil while other rows are filled.
	sent    map[uuid.UUID][]reusedEvent
	counted map[uuid.UUID][]logRow
}

func (t *tableFiller) fillRows(ctx context.Context, rows *decode.Rows, confirmed pglogrepl.LSN) error {
	if t.at.LSN == 0 {
		t.at.LSN = confirmed
	}
	for i := range rows.Rejects {
		rows.Rejects[i].Position = t.nextPosition()
	}
	positions := make([]decode.Position, rows.Len()) // each row keeps its own, however often it is sent
	for i := range positions {
		positions[i] = t.nextPosition()
	}
	return t.filler.fill(ctx, rows, func(ctx context.Context) (gap, error) { return t.compare(ctx, rows) },
		func(i int) decode.Position { return positions[i] })
}

// nextPosition is a position that no other row of this source has: no two replays begin at the same position.
func (t *tableFiller) nextPosition() decode.Position {
	if t.at.Seq == math.MaxUint32 {
		t.at.LSN, t.at.Seq = t.at.LSN+1, 0 // within the record at that position
	}
	t.at.Seq++
	return t.at
}

// compare returns what is missing, by id. Dead letters are read first, as in filler.compare.
func (t *tableFiller) compare(ctx context.Context, rows *decode.Rows) (gap, error) {
	if t.sent != nil {
		return t.compareReused(ctx, rows)
	}
	var g gap
	deadLetters, present := make(map[uuid.UUID]bool), make(map[uuid.UUID]bool)
	if t.filler.useDeadLetters {
		ids := idsOf(rows, 0, rows.Len())
		for _, r := range rows.Rejects {
			ids = append(ids, r.ID)
		}
		if err := t.filler.log.deadLettersByID(ctx, anySource, ids, func(id uuid.UUID) { deadLetters[id] = true }); err != nil {
			return g, err
		}
	}
	if err := t.filler.log.present(ctx, anySource, rows, func(id uuid.UUID) { present[id] = true }); err != nil {
		return g, err
	}
	for i := range rows.Len() {
		switch id := rows.IDAt(i); {
		case present[id]:
			g.present++
		case deadLetters[id]:
			g.deadLetters++
		default:
			g.rows = append(g.rows, i)
			present[id] = true // once: its second row came after reusedIDs, and is the streamer's to deliver
		}
	}
	for i, r := range rows.Rejects {
		if deadLetters[r.ID] {
			g.deadLetters++
		} else {
			g.rejects = append(g.rejects, i)
		}
	}
	return g, nil
}
