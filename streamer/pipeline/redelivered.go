package pipeline

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// redelivered are the rows that the slot delivers again after a failover, up to the end of event_log.
// They are skipped, and so looked for: another program may have read them from the slot before a
// streamer wrote those behind them, and the failover may have lost every record of that. What is
// missing is reported, and the stream goes on: rows may have been deleted as well.
type redelivered struct {
	after decode.Position // rows up to here were found
	until pglogrepl.LSN   // of the last commit with such rows
}

func (s *session) newRedelivered() *redelivered {
	if s.record.UnprovedUntil == 0 {
		return nil
	}
	return &redelivered{after: s.firstPosition(), until: s.record.UnprovedUntil}
}

// checkRedelivered looks for the rows that were skipped before those of b.
func (w *writer) checkRedelivered(ctx context.Context, b *batch.Batch) error {
	r := w.redelivered
	if r == nil {
		return nil
	}
	if n := len(b.Skipped); n > 0 {
		through := b.Skipped[n-1].Position
		missing, err := w.missingRows(ctx, sink.Range{After: r.after, Through: through}, b.Skipped)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			err := &MissingError{Slot: w.s.cfg.Origin.SlotName(), Rows: missing}
			w.s.log.Error("after the failover, events are missing", "error", err)
			w.s.observer.EventsMissing(err)
			w.unproved.leaveOut(missing)
		}
		r.after = through
	}
	if !b.Empty() || b.Confirm > r.until {
		w.redelivered, w.s.record.UnprovedUntil = nil, 0
		w.s.log.Info("looked for all events that the slot has delivered again after the failover", "up_to", r.until.String())
	}
	return nil
}

// missingRows returns those of rows, all of r, that are in ClickHouse neither under their position nor, as a
// replay from the table writes them, under their id alone.
func (w *writer) missingRows(ctx context.Context, r sink.Range, rows []batch.Skipped) ([]batch.Skipped, error) {
	var there map[decode.Position]bool
	err := w.s.untilAnswered(ctx, "rows by position", func(ctx context.Context) (err error) {
		there, err = w.s.sink.PositionsIn(ctx, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	var missing []batch.Skipped
	rows = slices.DeleteFunc(slices.Clone(rows), func(row batch.Skipped) bool { return there[row.Position] })
	for len(rows) > 0 {
		page := rows[:min(idPage, len(rows))]
		nowhere, err := w.withoutEvent(ctx, page)
		if err != nil {
			return nil, err
		}
		if len(nowhere) == idPage { // no replay has written them, and to look for each costs a scan
			return append(missing, rows...), nil
		}
		missing, rows = append(missing, nowhere...), rows[len(page):]
	}
	return missing, nil
}

// idPage is how many events are looked for by id in the time that ClickHouse has for an answer.
const idPage = 1000

// withoutEvent returns those of rows whose id is nowhere in ClickHouse, or not known.
func (w *writer) withoutEvent(ctx context.Context, rows []batch.Skipped) ([]batch.Skipped, error) {
	ids := make([]uuid.UUID, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	list, err := w.stillMissing(ctx, ids)
	if err != nil {
		return nil, err
	}
	unknown := map[uuid.UUID]bool{{}: true}
	for _, id := range list {
		unknown[id] = true
	}
	return slices.DeleteFunc(slices.Clone(rows), func(row batch.Skipped) bool { return !unknown[row.ID] }), nil
}

// MissingError names events that are missing in ClickHouse, and how to go on.
type MissingError struct {
	Slot string
	Rows []batch.Skipped // at least one
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("ClickHouse does not have %d events that slot %s has delivered again and that count as written; the first is %s of the commit at %s. "+
		"They were deleted there, skipped by --start-lsn, or read from the slot by another program. `streamer verify` compares, and `streamer replay --from-table` writes what is missing and no message",
		len(e.Rows), e.Slot, uuid.UUID(e.Rows[0].ID), e.Rows[0].LSN)
}
