package ops

import (
	"fmt"
	"sync"
	"time"

	"diehard/streamer/sink"
)

// The state is degraded when, of the events of the last ten minutes, at least manyDeadLetters and more than
// one in deadLetterShare have become dead letters.
const (
	manyDeadLetters = 10
	deadLetterShare = 100
)

// Causes of being degraded: events are delivered, and something beside them is not as it should be.
const (
	degradedByView        = "view"
	degradedByDeadLetters = "dead_letters"
	degradedByMissing     = "missing_events"
)

var degradedBy = []string{degradedByView, degradedByDeadLetters, degradedByMissing}

// failingView is the view that failed with the last insert, if one did. Safe for concurrent use.
type failingView struct {
	mu      sync.Mutex
	err     *sink.ViewError
	last    time.Time
	inFlush bool // it failed since the present flush began
}

func (v *failingView) failed(err *sink.ViewError) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.err, v.last, v.inFlush = err, time.Now(), true
}

func (v *failingView) flushStarted() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.inFlush = false
}

// wrote notes rows that were written: no view fails any more that did not fail with them.
func (v *failingView) wrote() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.inFlush {
		v.err = nil
	}
}

// present returns what failed with the last insert. ClickHouse knows better of a view that refuses every insert:
// it is asked without one.
func (v *failingView) present(c endpoint[ClickHouse]) *sink.ViewError {
	v.mu.Lock()
	defer v.mu.Unlock()
	asked := up(c) && c.at.After(v.last)
	switch {
	case asked && c.last.views != nil:
		return c.last.views
	case asked && v.err != nil && v.err.Refuses:
		return nil
	default:
		return v.err
	}
}

// degraded says, by cause, what is not as it should be although events are delivered.
func (m *Monitor) degraded(x snapshot) map[string]string {
	why := map[string]string{}
	if err := m.views.present(x.clickhouse); err != nil {
		why[degradedByView] = viewText(err)
	}
	if dead, all := m.history.deadLetters(); dead >= manyDeadLetters && dead*deadLetterShare > all {
		why[degradedByDeadLetters] = fmt.Sprintf("%s of the %s events of the last ten minutes became dead letters: see `streamer deadletter list`", count(dead), count(all))
	}
	if n := m.missing.Load(); n > 0 {
		why[degradedByMissing] = fmt.Sprintf("%s events that were delivered again after a failover are missing in ClickHouse: deleted, skipped, or read from the slot by another program; compare with `streamer verify`", count(n))
	}
	return why
}

func viewText(err *sink.ViewError) string {
	return text(err) + "; events are written, and its table lacks what it makes of them: repair or drop the view, then fill its table from event_log"
}

// reasons lists degraded texts in a fixed order.
func reasons(why map[string]string) []string {
	list := []string{}
	for _, cause := range degradedBy {
		if text, ok := why[cause]; ok {
			list = append(list, text)
		}
	}
	return list
}

func readDegraded(m *Monitor, s snapshot, emit func(float64, ...string)) {
	why := m.degraded(s)
	for _, cause := range degradedBy {
		emit(number(why[cause] != ""), cause)
	}
}
