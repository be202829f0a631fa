package pipeline

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// redelivered are the rows that the slot delivers again after a failover, up to the end of event_log.
// They are skipped, and so looked for: another program may have read them from the slot before a
// streamer wrote those behind them, and the failover may have lost every record of that.
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
//
// Errors: failure.Fatal when rows are missing.
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
			return r.missed(w.s.cfg, missing)
		}
		r.after = through
	}
	if !b.Empty() || b.Confirm > r.until {
		w.redelivered, w.s.record.UnprovedUntil = nil, 0
		w.s.log.Info("all events that the slot has delivered again are in ClickHouse", "before_lsn", r.until.String())
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
	rows = slices.DeleteFunc(slices.Clone(rows), func(row batch.Skipped) bool { return there[row.Position] })
	if len(rows) == 0 {
		return nil, nil
	}
	ids := make([]uuid.UUID, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	list, err := w.stillMissing(ctx, ids)
	if err != nil {
		return nil, err
	}
	unknown := make(map[uuid.UUID]bool, len(list))
	for _, id := range list {
		unknown[id] = true
	}
	return slices.DeleteFunc(rows, func(row batch.Skipped) bool { return !unknown[row.ID] }), nil
}

// missed says which events are missing, and how to go on.
func (r *redelivered) missed(cfg Config, missing []batch.Skipped) error {
	return failure.Wrap(failure.Fatal, failure.Because(failure.SlotLost, fmt.Errorf("events are missing in ClickHouse before the end of event_log, at least %d, one of them %s at %s: "+
		"before the failover another program read them from slot %s, or they were deleted from ClickHouse. "+
		"Run `streamer slot accept`, which lets the stream go on behind them, and `streamer replay --from-table`, which delivers them",
		len(missing), uuid.UUID(missing[0].ID), missing[0].LSN, cfg.Origin.SlotName())))
}
