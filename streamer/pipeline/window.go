package pipeline

import (
	"context"
	"time"

	"diehard/streamer/sink"
)

// window keeps the deduplication window of event_log from being outlived: while an insert
// of which nothing is known may still be written, ClickHouse must remember its token. Such are those that a
// predecessor may hold, and our own that had no answer. They are over by their time limit,
// but for a commit that hangs: so ClickHouse is asked before its token may be forgotten.
type window struct {
	limit     int           // blocks that may be written within bound
	bound     time.Duration // as long may an insert be under way
	until     time.Time     // an insert of which nothing is known is under way no longer, unless its commit hangs
	uncertain bool          // there may be one whose commit hangs
	since     int           // blocks since uncertain
	blocks    []time.Time   // the latest ones, oldest first
}

// newWindow begins with the blocks that the record names, as if they had been written at regular intervals.
func newWindow(s *session, at *beginning) window {
	w := window{limit: s.sink.Blocks(), bound: sink.InsertBound(s.insertTimeout())}
	if in := s.record.Intent; in != nil {
		if at.repeat != nil || in.Unanswered {
			w.until, w.uncertain, w.since = s.claimedAt.Add(w.bound), true, in.Blocks
		}
		for n := min(in.Blocks, w.limit); n > 0; n-- {
			w.blocks = append(w.blocks, s.claimedAt.Add(-w.bound*time.Duration(n)/time.Duration(in.Blocks)))
		}
	}
	return w
}

// unanswered notes an insert that was registered and had no answer.
func (w *window) unanswered(registered time.Time) {
	if until := registered.Add(w.bound); until.After(w.until) {
		w.until = until
	}
	if !w.uncertain {
		w.uncertain, w.since = true, 0
	}
}

// outlived reports whether another block may push out the token of an insert whose commit hangs.
func (w *window) outlived(now time.Time) bool {
	return w.uncertain && w.since >= w.limit && !now.Before(w.until)
}

// wait returns how long the next block must wait.
func (w *window) wait(now time.Time) time.Duration {
	if len(w.blocks) < w.limit || !now.Before(w.until) {
		return 0
	}
	fits := w.blocks[len(w.blocks)-w.limit].Add(w.bound)
	if w.until.Before(fits) {
		fits = w.until
	}
	return fits.Sub(now)
}

// add notes a block and returns how many there were before it within bound.
func (w *window) add(now time.Time) int {
	old := 0
	for old < len(w.blocks) && (w.blocks[old].Add(w.bound).Before(now) || len(w.blocks)-old >= w.limit) {
		old++
	}
	w.blocks = append(w.blocks[:0], w.blocks[old:]...)
	w.blocks = append(w.blocks, now)
	w.since++
	return len(w.blocks)
}

// awaitWindow waits until the window has room for another block.
func (w *writer) awaitWindow(ctx context.Context) error {
	if wait := w.window.wait(time.Now()); wait > 0 {
		w.s.log.Info("many small blocks: waiting until an insert without an answer is over, so that ClickHouse does not forget its token",
			"wait", wait.Round(time.Second), "blocks", w.window.limit)
		if err := w.s.pause(ctx, wait); err != nil {
			return err
		}
	}
	if !w.window.outlived(time.Now()) {
		return nil
	}
	if err := w.s.waitUntilNoneRuns(ctx, w.s.source.QueryPrefix()); err != nil {
		return err
	}
	w.window.uncertain = false
	return nil
}
