package sim_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"diehard/streamer/sim/simch"
	"diehard/streamer/sim/simpg"
)

// counts are how often events are in event_log and in the dead-letter table.
func (w *world) counts(events []simpg.Event) (rows, deadLetters []int) {
	w.check.mu.Lock()
	defer w.check.mu.Unlock()
	for _, e := range events {
		rows = append(rows, w.check.events[e.ID].rows)
		deadLetters = append(deadLetters, w.check.events[e.ID].deadLetters)
	}
	return rows, deadLetters
}

// The rest of a block is not written, under the same token or others, beside an attempt at all
// of it that had no answer: whatever refuses rows in between.
func TestAnInsertIsWrittenLateAndRefusedInBetween(t *testing.T) {
	for context, refuse := range map[string]func(c *simch.Cluster, on bool){
		`{"poison":1}`: func(c *simch.Cluster, on bool) { c.SetConstraint(eventLog, on) },
		`{"toxic":1}`:  func(c *simch.Cluster, on bool) { c.SetIndex(eventLog, on) },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newScenario(t, profiles[1])
			refuse(w.ch, false)
			w.start()
			pause(time.Second)
			w.fixedFate.Store(&simch.Fate{Work: 25 * time.Second, Silent: true})
			w.commit(3, context)
			pause(time.Second)
			w.fixedFate.Store(nil)
			for _, h := range w.chHosts {
				h.Cut(true)
			}
			refuse(w.ch, true)
			pause(10 * time.Second)
			refuse(w.ch, false)
			pause(5 * time.Minute)
			w.delivered(t)
		})
	}
}

// A streamer is frozen with a whole block, its successor is refused that block and writes the rest
// of it, and the frozen one goes on when nothing refuses it any more: one of the two is written.
func TestAFrozenStreamerHoldsABlockThatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScenario(t, profiles[0])
		w.ch.SetConstraint(eventLog, true)
		w.start()
		pause(time.Second)
		w.trap = &trap{freeze: 8 * time.Second, lost: -1} // ClickHouse waits for the block for longer
		events := w.commit(3, `{"poison":1}`, `{"poison":2}`)
		pause(time.Second)
		w.pg.Lose(w.slot()) // without the news of it
		w.start()
		pause(5 * time.Second)
		rows, dead := w.counts(events)
		assert.Equal(t, []int{1, 1, 1, 0, 0}, rows, w.trace.String())
		assert.Equal(t, []int{0, 0, 0, 1, 1}, dead)
		w.ch.SetConstraint(eventLog, false)
		pause(5 * time.Minute)
		rows, _ = w.counts(events)
		assert.Equal(t, []int{1, 1, 1, 0, 0}, rows, w.trace.String())
		w.finish(t)
	})
}

// A streamer ends between the dead letters of a block and the rest of it. Its successor writes
// the rest, although ClickHouse would take the whole block by then.
func TestATakeoverKeepsWhatWasRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScenario(t, profiles[0])
		w.ch.SetConstraint(eventLog, true)
		first := w.start()
		pause(time.Second)
		written := w.ch.Written
		w.ch.Written = func(p *simch.Part) {
			written(p)
			if p.Table == deadLetter {
				first.host.Freeze()
			}
		}
		events := w.commit(2, `{"poison":1}`, `{}`, `{"poison":2}`, `{"poison":3}`, `{}`)
		pause(2 * time.Second)
		rows, dead := w.counts(events)
		assert.Equal(t, []int{0, 0, 0, 0, 0, 0, 0}, rows)
		assert.Equal(t, []int{0, 0, 1, 0, 1, 1, 0}, dead)
		w.ch.SetConstraint(eventLog, false)
		w.start()
		pause(5 * time.Minute)
		rows, dead = w.counts(events)
		assert.Equal(t, []int{1, 1, 0, 1, 0, 0, 1}, rows, w.trace.String())
		assert.Equal(t, []int{0, 0, 1, 0, 1, 1, 0}, dead)
		first.host.Thaw()
		pause(5 * time.Minute)
		w.finish(t)
	})
}

// A batch that exceeds a limit of ClickHouse is written in smaller ones, and the next ones are
// smaller from the beginning.
func TestALimitLeadsToSmallerBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScenario(t, profiles[0])
		w.ch.SetMaxRows(eventLog, 6)
		largest, blocks := 0, 0
		written := w.ch.Written
		w.ch.Written = func(p *simch.Part) {
			written(p)
			largest, blocks = max(largest, len(p.Rows)), blocks+1
		}
		w.start()
		pause(time.Second)
		w.commit(400, `{"poison":1}`)
		pause(time.Hour)
		assert.Empty(t, w.check.missing(), w.trace.String())
		assert.Equal(t, 5, largest, "40 halved three times")
		assert.Less(t, blocks, 160)
		w.ch.SetMaxRows(eventLog, 0)
		for range 5 {
			w.commit(1000)
			pause(time.Minute)
		}
		assert.Equal(t, 40, largest, "large ones are tried again")
		w.finish(t)
	})
}
