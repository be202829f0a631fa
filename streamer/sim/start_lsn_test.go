package sim_test

import (
	"testing"
	"testing/synctest"
	"time"
)

// A streamer that is killed with its first insert behind --start-lsn unfinished is followed
// by one that finishes it, with the option and without it, and whatever has been written of
// what is skipped.
func TestStartLSNWithAnUnfinishedInsert(t *testing.T) {
	for name, c := range map[string]struct {
		delivered bool // rows before the position
		replayed  bool // the skipped rows are written before the insert is repeated
		again     bool // the next one has the option, too
	}{
		"first rows":                       {again: true},
		"first rows, then without":         {},
		"later rows, replayed":             {delivered: true, replayed: true, again: true},
		"later rows, replayed and without": {delivered: true, replayed: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newScenario(t, profiles[0])
				first := w.start()
				pause(time.Second)
				if c.delivered {
					w.commit(2)
					pause(time.Second)
				}
				w.kill(first)
				skipped := w.commit(3)
				w.startLSN = w.pg.End()
				for _, e := range skipped {
					w.check.events[e.ID].excused = true
				}
				w.commit(2)
				w.ch.SetFailure(eventLog, 241)
				second := w.start()
				pause(5 * time.Second)
				w.kill(second)
				w.ch.SetFailure(eventLog, 0)
				if c.replayed {
					w.replay(skipped)
				}
				if !c.again {
					w.startLSN = 0
				}
				w.start()
				pause(time.Minute)
				w.delivered(t)
			})
		})
	}
}
