package sim_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/sim/simch"
	"diehard/streamer/sim/simpg"
)

// newScenario is a world without a schedule: a test says what happens.
func newScenario(t *testing.T, p profile) *world {
	t.Helper()
	w := newWorld(t, 1, p)
	w.storm.Store(false)
	return w
}

// delivered demands that every event has arrived, and ends the world.
func (w *world) delivered(t *testing.T) {
	t.Helper()
	assert.Empty(t, w.check.missing(), w.trace.String())
	w.finish(t)
}

// commit publishes a transaction of n events, and one more for each context, and returns them with the LSN of the commit.
func (w *world) commit(n int, contexts ...string) []simpg.Event {
	events := make([]simpg.Event, n+len(contexts))
	for i := range events {
		for j := range events[i].ID {
			events[i].ID[j] = byte(w.random.Uint32())
		}
		events[i].Type, events[i].Context, events[i].WAL = "order_paid", "{}", 200
		if i >= n {
			events[i].Context = contexts[i-n]
		}
	}
	at := w.pg.Publish(events, false)
	w.check.published(events, at)
	published := slices.Clone(events)
	for i := range published {
		published[i].LSN = at.LSN
	}
	return published
}

func (w *world) kill(s *streamer) {
	s.host.Kill(false)
	s.stop()
	_ = ended(s)
	w.streamers = slices.DeleteFunc(w.streamers, func(other *streamer) bool { return other == s })
}

// leaveInserting freezes s, whose insert is under way on one of two nodes; those that come use the other one.
func (w *world) leaveInserting(s *streamer) {
	s.host.Freeze()
	w.fixedFate.Store(nil)
	if w.ch.Node(0).Inserting() {
		w.chHosts = w.chHosts[1:]
	} else {
		w.chHosts = w.chHosts[:1]
	}
}

// killAfterOne has a streamer deliver an event, and kills it.
func (w *world) killAfterOne() {
	s := w.start()
	pause(time.Second)
	w.commit(1)
	pause(time.Second)
	w.kill(s)
}

// refusal is what s ends with; nil when it goes on.
func refusal(s *streamer) (err error) {
	select {
	case err = <-s.over:
		s.over <- err
	case <-time.After(10 * time.Minute):
	}
	return err
}

// finish ends the world, in which nothing must be wrong.
func (w *world) finish(t *testing.T) {
	t.Helper()
	w.close()
	require.Empty(t, w.check.failed(), w.trace.String())
	require.NoError(t, w.pg.Err())
	require.NoError(t, w.ch.Err())
}

// replay writes events at their own positions, as `streamer replay --from-lsn` does.
func (w *world) replay(events []simpg.Event) {
	rows := make([]simch.Row, len(events))
	for i, e := range events {
		rows[i] = simch.Row{
			ID: e.ID, Source: systemID + "/" + w.slot(), LSN: uint64(e.LSN), Seq: uint32(i + 1),
			Timeline: 1, IngestedAt: time.Now().UnixMilli(), Context: e.Context,
		}
	}
	w.ch.Fill(eventLog, rows)
}

// Inserts of the old timeline are waited for although the new primary has no record that names it.
func TestAFailoverThatLostTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScenario(t, profiles[0])
		w.pg.CreateSlot(w.slot()) // by hand, so that the first claim makes the record
		w.commit(2)
		at := w.pg.End()
		w.fixedFate.Store(&simch.Fate{Work: 5 * time.Minute, Stalled: true})
		first := w.start()
		pause(3 * time.Minute)
		first.host.Freeze()
		w.fixedFate.Store(nil)
		w.failover(w.pg.Since(at), 0)
		w.start()
		pause(10 * time.Minute)
		w.delivered(t)
	})
}

// A failover loses the slot and its record while an insert is under way on a node that is not asked. The streamer
// that has seen the old timeline makes them anew and waits; when it is killed meanwhile, the next one waits, too.
func TestAWaitForOldInsertsOutlivesItsStreamer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScenario(t, profiles[1])
		at := w.pg.End()
		w.fixedFate.Store(&simch.Fate{Work: 25 * time.Second})
		first := w.start()
		pause(time.Second)
		second := w.start()
		w.commit(2)
		pause(time.Second)
		w.leaveInserting(first)
		w.failover(w.pg.Since(at), 0)
		pause(10 * time.Second)
		w.kill(second)
		third := w.start()
		pause(10 * time.Second)
		w.commit(10) // not before what is still under way
		assert.ErrorContains(t, refusal(third), "they were lost in a failover", w.trace.String())
		w.finish(t)
	})
}

// The time limit of a predecessor counts, whatever the setting is now, on a node that knows nothing of its inserts.
func TestAFailoverAndALowerInsertTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := profiles[1]
		p.insertTimeout = 20 * time.Minute
		w := newScenario(t, p)
		first := w.start()
		pause(time.Second)
		w.commit(1)
		pause(time.Second)
		w.fixedFate.Store(&simch.Fate{Work: 8 * time.Minute})
		w.commit(2)
		pause(time.Second)
		w.leaveInserting(first)
		w.failover(1, 0)
		w.profile.insertTimeout = time.Minute
		w.start()
		pause(15 * time.Minute)
		w.delivered(t)
	})
}

// An insert is registered before its intent is durable, so that its time limit runs before a failover can lose the intent.
func TestAFailoverLosesTheIntentOfAFrozenStreamer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := profiles[1]
		p.insertTimeout = 2 * time.Minute // a minute for the first streamer
		w := newScenario(t, p)
		first := w.start()
		pause(time.Second)
		w.commit(1)
		pause(time.Second)
		all := w.chHosts
		w.chHosts = all[:1]
		first.host.Cut(false) // its next connections lead to the first node
		pause(10 * time.Second)
		w.fixedFate.Store(&simch.Fate{Work: time.Minute})
		w.trap = &trap{freeze: 58 * time.Second, lost: 1}
		w.commit(2)
		pause(time.Second)
		w.chHosts = all[1:]
		w.profile.insertTimeout = time.Minute
		w.start()
		pause(80 * time.Second)
		w.fixedFate.Store(nil)
		pause(5 * time.Minute)
		w.delivered(t)
	})
}

// A primary whose WAL uses the positions of lost events a second time is refused.
func TestAFailoverThatLostWhatIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScenario(t, profiles[0])
		w.start()
		pause(time.Second)
		w.commit(1)
		pause(time.Second)
		at := w.pg.End()
		w.commit(3)
		w.commit(3)
		pause(time.Second)
		w.failover(w.pg.Since(at), 5)
		for range 10 {
			w.commit(2)
		}
		assert.ErrorContains(t, refusal(w.streamers[0]), "they were lost in a failover", w.trace.String())
		w.close()
	})
}

// Something else reads the slot, a streamer writes on behind that after a failover and is still
// comparing, and another failover goes to a standby that has nothing of all this: what was read
// comes again, and is skipped, because event_log ends behind it.
func TestWhatASlotDeliversAgainIsLookedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScenario(t, profiles[0])
		w.killAfterOne()
		pause(2 * time.Minute) // until PostgreSQL notices
		w.commit(2)
		w.commit(2)
		assert.True(t, w.pg.ForeignReader(w.slot(), 2))
		w.check.foreignReader(w.pg.Slot(w.slot()))
		w.commit(3)
		at := w.pg.End()
		w.failover(0, 0)
		second := w.start()
		assert.ErrorContains(t, refusal(second), "does not deliver any more")
		w.kill(second)
		w.failover(w.pg.Since(at), 20)
		w.trapMu.Lock()
		w.trap = &trap{freeze: 10 * time.Minute, lost: -1}
		w.trapMu.Unlock()
		w.start() // is frozen when it has recorded that, and its successor finds the record
		w.start()
		pause(5 * time.Minute)
		assert.Equal(t, 4, w.check.reported, w.trace.String())
		w.delivered(t)
	})
}

// The record of a streamer that has just begun with a backlog is new, and what is not delivered is old.
func TestABacklogIsComparedFromItsBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScenario(t, profiles[0])
		w.killAfterOne()
		for range 5 {
			w.commit(w.rows)
		}
		pause(8 * time.Hour)
		w.fixedFate.Store(&simch.Fate{Work: time.Minute})
		second := w.start()
		pause(30 * time.Second)
		w.kill(second) // with the intent of the first rows
		pause(5 * time.Minute)
		w.fixedFate.Store(nil)
		assert.True(t, w.pg.ForeignReader(w.slot(), 5))
		w.check.foreignReader(w.pg.Slot(w.slot()))
		w.failover(0, 0)
		assert.ErrorContains(t, refusal(w.start()), "does not deliver any more", w.trace.String())
		w.close()
	})
}

// A token is not forgotten while its insert may still be written, however many small blocks wait.
func TestABacklogOfSmallBlocksAfterATakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := profiles[1]
		p.rows = 2
		w := newScenario(t, p)
		w.start()
		pause(time.Second)
		w.fixedFate.Store(&simch.Fate{Work: 25 * time.Second})
		w.commit(2)
		pause(time.Second)
		first := w.streamers[0]
		first.host.Freeze()
		w.fixedFate.Store(nil)
		for range 30 {
			w.commit(80)
		}
		w.start()
		pause(5 * time.Minute)
		w.delivered(t)
	})
}

// Rows say which timeline their WAL belongs to, and not which one the server that sent them was
// on: a primary that has their WAL goes on, although it never was on that server's timeline.
func TestTwoFailoversOfWhichTheSecondSkipsATimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScenario(t, profiles[0])
		w.killAfterOne()
		w.commit(2)
		at := w.pg.End()
		w.pg.Other(1000)
		w.failover(0, 0)
		w.start()
		pause(2 * time.Minute)
		assert.Empty(t, w.check.missing(), w.trace.String())
		w.failover(w.pg.Since(at), 0)
		assert.True(t, w.pg.Abandoned())
		w.commit(2)
		pause(10 * time.Minute)
		w.delivered(t)
	})
}

// A commit that hangs is not bounded by a time limit, and neither is how long its token must be
// remembered: ClickHouse is asked before so many blocks have gone that it may have been forgotten.
func TestAHungInsertAndABacklogOfSmallBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := profiles[0]
		p.rows = 2
		w := newScenario(t, p)
		w.start()
		pause(time.Second)
		w.fixedFate.Store(&simch.Fate{Work: 10 * time.Minute, Stalled: true})
		w.commit(2)
		pause(time.Second)
		w.streamers[0].host.Freeze()
		w.fixedFate.Store(nil)
		for range 30 {
			w.commit(80)
		}
		w.start()
		pause(15 * time.Minute)
		w.delivered(t)
	})
}
