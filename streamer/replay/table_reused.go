package replay

import (
	"context"
	"maps"
	"slices"

	"github.com/google/uuid"

	"diehard/streamer/decode"
)

// fillReused fills the rows whose ids several rows of the outbox have: only the content
// distinguishes them, so what is missing is a difference of multisets.
func (t *tableFiller) fillReused(ctx context.Context, s *session, o *outbox, reused map[uuid.UUID]bool) error {
	o.progress = func(uint64, uint64) {}
	for ids := range slices.Chunk(slices.Collect(maps.Keys(reused)), reusedAtOnce) {
		var err error
		if t.sent, err = s.readReused(ctx, ids, o.span); err != nil {
			return err
		}
		t.counted = make(map[uuid.UUID][]logRow)
		// Only what sent has can be missing, and the streamer has confirmed all of that.
		o.ids, o.nowait = ids, t.at.LSN
		if err := o.each(ctx, t.fillRows); err != nil {
			return err
		}
	}
	return nil
}

// compareReused returns what is missing of rows, whose ids are reused.
func (t *tableFiller) compareReused(ctx context.Context, rows *decode.Rows) (gap, error) {
	var g gap
	ids := idsOf(rows, 0, rows.Len())
	for _, r := range rows.Rejects {
		ids = append(ids, r.ID)
	}
	slices.SortFunc(ids, compareIDs)
	ids = slices.Compact(ids)
	deadLetters, written := make(map[uuid.UUID]int), make(map[uuid.UUID][]logRow)
	if t.filler.useDeadLetters {
		if err := t.filler.log.deadLettersByID(ctx, anySource, ids, func(id uuid.UUID) { deadLetters[id]++ }); err != nil {
			return g, err
		}
	}
	if err := t.filler.log.byIDs(ctx, ids, func(r logRow) { written[r.ID] = append(written[r.ID], r) }); err != nil {
		return g, err
	}
	missing := make(map[uuid.UUID][]content)
	for _, id := range ids {
		missing[id] = missingContents(t.sent[id], append(written[id], t.counted[id]...), deadLetters[id])
	}
	for i := range rows.Len() {
		id, c := rows.IDAt(i), contentAt(rows, i)
		n := slices.Index(missing[id], c)
		if n < 0 {
			g.present++
			continue
		}
		missing[id] = slices.Delete(missing[id], n, n+1)
		g.rows = append(g.rows, i)
		if t.filler.dryRun {
			t.counted[id] = append(t.counted[id], logRow{ID: id, content: c})
		}
	}
	for i, r := range rows.Rejects {
		if missingRejects(t.sent[r.ID], deadLetters[r.ID]) > 0 {
			deadLetters[r.ID]++
			g.rejects = append(g.rejects, i)
		} else {
			g.deadLetters++
		}
	}
	return g, nil
}

// missingRejects is how many rejects of sent are no dead letters.
func missingRejects(sent []reusedEvent, deadLetters int) int {
	n := -deadLetters
	for _, e := range sent {
		if e.reject {
			n++
		}
	}
	return n
}

// missingContents are those of sent that have no counterpart: not an equal row, nor one
// that differs, nor a dead letter. Rejects are not among them.
func missingContents(sent []reusedEvent, written []logRow, deadLetters int) (missing []content) {
	written = slices.Clone(written)
	for _, e := range sent {
		_, rest, equal := take(written, e.content, false)
		switch {
		case e.reject:
			deadLetters--
		case equal:
			written = rest
		default:
			missing = append(missing, e.content)
		}
	}
	others := len(written) + max(0, deadLetters)
	return missing[min(others, len(missing)):]
}
