package sim_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"diehard/streamer/sim/simch"
	"diehard/streamer/sim/simnet"
	"diehard/streamer/sim/simpg"
	"diehard/streamer/sink"
)

// profile is a kind of world. What is not in it does not happen.
type profile struct {
	name          string
	kind          simch.Kind
	nodes         int
	quorum        int
	cluster       string
	window        int
	windowAge     time.Duration
	lag           time.Duration
	streamers     int
	rows          int
	insertTimeout time.Duration
	actions       int
	weights       map[string]int // of the actions
	poison, view  bool
	bounded       bool // no insert runs beyond its time limit
	holds         bool // must be without a fault
}

// base are the faults that every world has.
var base = map[string]int{
	"kick": 30, "lose": 8, "freeze at intent": 8, "cut": 20, "freeze": 20, "stall": 15, "kill": 20, "stop": 8, "crash": 6,
	"wide delays": 10, "node cut": 10, "node freeze": 8, "other writers": 3, "read-only": 3,
}

func with(extra map[string]int) map[string]int {
	all := make(map[string]int)
	for _, m := range []map[string]int{base, extra} {
		for k, v := range m {
			all[k] += v
		}
	}
	return all
}

var profiles = []profile{
	{
		name: "one node", kind: simch.Plain, nodes: 1, window: 1000, streamers: 2, rows: 40,
		insertTimeout: time.Minute, actions: 150, weights: with(nil), holds: true,
	},
	{
		name: "two listeners", kind: simch.Plain, nodes: 2, window: 1000, streamers: 2, rows: 40,
		insertTimeout: time.Minute, actions: 150, weights: with(nil), poison: true,
		holds: true,
	},
	{
		name: "replicas", kind: simch.Replicated, nodes: 3, quorum: 2, cluster: "c", window: 10000, windowAge: time.Hour, lag: 2 * time.Second,
		streamers: 3, rows: 40, insertTimeout: time.Minute, actions: 150, weights: with(nil),
		holds: true,
	},
	{
		name: "lagging replicas", kind: simch.Replicated, nodes: 3, cluster: "c", window: 10000, windowAge: time.Hour, lag: time.Second,
		streamers: 2, rows: 40, insertTimeout: 10 * time.Second, actions: 120, weights: with(map[string]int{"failover": 12, "lag": 40}), bounded: true,
		holds: true,
	},
	{
		name: "cloud", kind: simch.Shared, nodes: 3, window: 10000, windowAge: time.Hour, lag: 3 * time.Second,
		streamers: 2, rows: 40, insertTimeout: 30 * time.Second, actions: 150, weights: with(map[string]int{"delete": 6}),
		holds: true,
	},
	{
		name: "rows leave", kind: simch.Plain, nodes: 1, window: 1000, streamers: 2, rows: 40,
		insertTimeout: time.Minute, actions: 150, weights: with(map[string]int{"delete": 15}), view: true,
		holds: true,
	},
	{
		name: "failover", kind: simch.Plain, nodes: 1, window: 1000, streamers: 2, rows: 40,
		insertTimeout: time.Minute, actions: 120, weights: with(map[string]int{"failover": 12, "lossy failover": 6}),
		holds: true,
	},
	{
		name: "failover, two listeners", kind: simch.Plain, nodes: 2, window: 1000, streamers: 2, rows: 40,
		insertTimeout: time.Minute, actions: 120, weights: with(map[string]int{"failover": 8, "lossy failover": 8, "freeze at intent": 8}), bounded: true,
		holds: true,
	},
	{
		name: "foreign reader", kind: simch.Plain, nodes: 1, window: 1000, streamers: 2, rows: 40,
		insertTimeout: time.Minute, actions: 120, weights: with(map[string]int{"foreign": 6}),
		holds: true,
	},
	{
		name: "foreign reader and failover", kind: simch.Plain, nodes: 1, window: 1000, streamers: 2, rows: 40,
		insertTimeout: time.Minute, actions: 120, weights: with(map[string]int{"foreign": 5, "failover": 8, "lossy failover": 4}),
		holds: true,
	},
	{
		name: "small window", kind: simch.Shared, nodes: 2, window: 100, windowAge: time.Hour, lag: time.Second, streamers: 2, rows: 40,
		insertTimeout: 20 * time.Second, actions: 150, weights: with(map[string]int{"other writers": 20, "flood": 60}), poison: true, bounded: true,
		holds: true,
	},
}

func shortDelays(r *rand.Rand) time.Duration {
	return 20*time.Microsecond + time.Duration(r.IntN(200_000))
}

// longTailed mostly delays little, and now and then for a long time.
func longTailed(typical, long time.Duration, often float64) simnet.Delay {
	return func(r *rand.Rand) time.Duration {
		d := time.Duration(r.ExpFloat64() * float64(typical))
		if r.Float64() < often {
			d += time.Duration(r.Float64() * float64(long))
		}
		return d
	}
}

// fate of one insert.
func (w *world) fate(r *rand.Rand) simch.Fate {
	f := simch.Fate{Work: time.Duration(1+r.ExpFloat64()*5) * time.Millisecond}
	if d := w.slowWork.Swap(0); d > 0 {
		f.Work = time.Duration(d)
		return f
	}
	if fixed := w.fixedFate.Load(); fixed != nil {
		return *fixed
	}
	if !w.storm.Load() {
		return f
	}
	switch n := r.IntN(100); {
	case n < 4:
		f.Silent = true
	case n < 7:
		f.Work += time.Duration(r.Float64() * float64(20*time.Second))
	case n < 9 && w.bounded:
		f.Work = time.Duration(r.Float64() * float64(w.insertTimeout))
	case n < 9:
		f.Work, f.Stalled = time.Duration(r.Float64()*float64(90*time.Second)), true
	case n < 11:
		f.Error = []int32{241, 252, 210, 159}[r.IntN(4)]
	case n < 13 && w.view:
		f.ViewError = []int32{241, 395}[r.IntN(2)]
	case n < 14:
		f.Silent, f.Work = true, time.Duration(r.Float64()*float64(20*time.Second))
	}
	return f
}

// publish commits a transaction of the application.
func (w *world) publish(r *rand.Rand) {
	n := 1 + r.IntN(4)
	poisonous := r.IntN(10) == 0
	switch r.IntN(30) {
	case 0:
		n = 60 + r.IntN(80) // several batches
	case 1, 2, 3:
		w.pg.Other(100 + r.IntN(5000))
		return
	}
	events := make([]simpg.Event, n)
	for i := range events {
		e := &events[i]
		binary.BigEndian.PutUint64(e.ID[:], r.Uint64())
		binary.BigEndian.PutUint64(e.ID[8:], r.Uint64())
		e.Type = []string{"order_paid", "user_created", "mail_sent"}[r.IntN(3)]
		size := 20 + r.IntN(200)
		if r.IntN(100) == 0 {
			size = 20_000 // compressed in the WAL
		}
		e.Context = fmt.Sprintf(`{"n":%d,"t":"%s"}`, r.IntN(1000), strings.Repeat("x", size))
		switch n := r.IntN(600); {
		case !w.poison:
		case n < 1:
			e.Context = `{"toxic":1}`
		case n < 4, poisonous && n < 200:
			e.Context = `{"poison":1}`
		}
		e.WAL = 100 + min(size, 150)
	}
	w.check.published(events, w.pg.Publish(events, r.IntN(3) == 0))
}

// any returns a streamer, or nil.
func (w *world) any(r *rand.Rand) *streamer {
	if len(w.streamers) == 0 {
		return nil
	}
	return w.streamers[r.IntN(len(w.streamers))]
}

func between(r *rand.Rand, a, b time.Duration) time.Duration {
	return a + time.Duration(r.Float64()*float64(b-a))
}

// long is how long something stays away: mostly shorter than the time limits, at times longer.
func long(r *rand.Rand) time.Duration {
	switch r.IntN(4) {
	case 0:
		return between(r, 0, time.Second)
	case 1:
		return between(r, time.Second, 15*time.Second)
	case 2:
		return between(r, 10*time.Second, 50*time.Second)
	default:
		return between(r, 30*time.Second, 6*time.Minute)
	}
}

// act does one thing of the schedule.
func (w *world) act(what string, r *rand.Rand) {
	note := func(format string, args ...any) {
		line := fmt.Sprintf("%10.3f %s ", time.Since(w.began).Seconds(), what) + fmt.Sprintf(format, args...)
		w.schedule = append(w.schedule, line)
		w.add("*** %s %s", what, fmt.Sprintf(format, args...))
	}
	s, lost := w.any(r), r.IntN(2) == 0
	switch what {
	case "kick":
		note("%v", w.pg.Terminate(w.slot()))
	case "cut":
		s.host.Cut(lost)
		note("%s, lost %v", s.name, lost)
	case "freeze":
		d := long(r)
		s.host.Freeze()
		time.AfterFunc(d, s.host.Thaw)
		note("%s for %s", s.name, d)
	case "stall":
		d := long(r)
		s.host.Stall(time.Now().Add(d))
		note("%s for %s", s.name, d)
	case "kill":
		s.host.Kill(lost)
		s.stop()
		note("%s, lost %v", s.name, lost)
	case "stop":
		s.stop()
		note("%s", s.name)
	case "crash":
		n := r.IntN(4)
		w.pg.Crash(n)
		note("slot goes back %d times", n)
	case "wide delays":
		w.widenDelays(r, note)
	case "node cut":
		h := w.chHosts[r.IntN(len(w.chHosts))]
		h.Cut(lost)
		note("%s, lost %v", h.Name, lost)
	case "node freeze":
		d := long(r)
		h := w.chHosts[r.IntN(len(w.chHosts))]
		h.Freeze()
		time.AfterFunc(d, h.Thaw)
		note("%s for %s", h.Name, d)
	case "read-only":
		d := between(r, time.Second, 20*time.Second)
		w.pg.SetReadOnly(true)
		time.AfterFunc(d, func() { w.pg.SetReadOnly(false) })
		note("for %s", d)
	case "lag":
		n, d := r.IntN(w.nodes), long(r)
		w.ch.Change(func() { w.lagUntil[n] = time.Now().Add(d) })
		note("node %d for %s", n, d)
	case "lose":
		note("%v", w.pg.Lose(w.slot()))
	case "freeze at intent":
		w.setTrap(r, note)
	case "flood":
		note("%v", w.ch.Flood(eventLog) && w.ch.Flood(deadLetter))
	case "other writers":
		n := r.IntN(w.window / 10)
		if bound := sink.InsertBound(w.insertTimeout); time.Since(w.othersAt) < bound/4 {
			n = 0 // half of a small window is theirs while an insert may be under way
		} else {
			w.othersAt = time.Now()
		}
		for i := range n {
			w.ch.Other(eventLog, fmt.Sprintf("other-%d-%d", len(w.schedule), i))
		}
		note("%d blocks", n)
	default:
		w.actOnData(what, r, note)
	}
}

func (w *world) widenDelays(r *rand.Rand, note func(string, ...any)) {
	typical := []time.Duration{50 * time.Microsecond, time.Millisecond, 30 * time.Millisecond}[r.IntN(3)]
	span, often := long(r), []float64{0, 0.002, 0.02}[r.IntN(3)]
	w.net.SetDelay(longTailed(typical, span, often))
	note("%s, %.1f %% up to %s", typical, 100*often, span)
}

// actOnData are the actions after which more than a network is different.
func (w *world) actOnData(what string, r *rand.Rand, note func(string, ...any)) {
	switch what {
	case "delete":
		share := []float64{1, 0.3, 0.05}[r.IntN(3)]
		n := w.ch.Delete(eventLog, func(*simch.Row) bool { return r.Float64() < share })
		note("%d rows", n)
	case "foreign":
		w.pg.Terminate(w.slot())
		taken := w.pg.ForeignReader(w.slot(), r.IntN(4))
		if taken {
			w.check.foreignReader(w.pg.Slot(w.slot()))
		}
		note("%v", taken)
	case "failover", "lossy failover":
		lost := 0
		if what == "lossy failover" {
			lost = r.IntN([]int{6, 60, 400}[r.IntN(3)])
		}
		older := r.IntN(6)
		note("lacks %d records with %d events, slot %d times older", lost, w.failover(lost, older), older)
		if r.IntN(2) == 0 { // time for the inserts of the old timeline to end
			w.quiet = sink.InsertBound(w.insertTimeout) + 10*time.Second
		}
	default:
		w.check.complain("unknown action %s", what)
	}
}

// failover promotes a standby and returns how many events it lacks.
func (w *world) failover(lost, older int) int {
	had := w.pg.Slot(w.slot()) != 0
	gone := w.pg.Failover(lost, older)
	w.check.failover(gone)
	if had && w.pg.Slot(w.slot()) == 0 {
		w.check.slotGone()
	}
	return len(gone)
}

// trap freezes the streamer that writes the next intent, before it hears that this is durable, and may
// let a standby take over that lacks the last records.
type trap struct {
	freeze time.Duration
	lost   int           // -1: no failover
	work   time.Duration // of the streamer's next insert, 0 for what it is
}

func (w *world) setTrap(r *rand.Rand, note func(string, ...any)) {
	t := &trap{freeze: long(r), lost: -1}
	if w.weights["lossy failover"] > 0 && r.IntN(2) == 0 {
		t.freeze, t.lost = between(r, w.insertTimeout*3/4, w.insertTimeout), 1+r.IntN(3)
		t.work = w.insertTimeout
		w.quiet = 3 * w.insertTimeout
	}
	w.trapMu.Lock()
	w.trap = t
	w.trapMu.Unlock()
	note("for %s, lost %d", t.freeze, t.lost)
}

// intended is called when a streamer has written its intent. By then the insert is registered.
func (w *world) intended(host string, intent any) {
	in, _ := intent.(map[string]any)
	if token, _ := in["token"].(string); in["after"] != in["through"] && !w.ch.Registered(token) {
		w.check.complain("an intent is written for %s, and no such insert was registered", token)
	}
	w.trapMu.Lock()
	t := w.trap
	w.trap = nil
	w.trapMu.Unlock()
	if t == nil {
		return
	}
	w.add("*** %s is frozen at its intent for %s", host, t.freeze)
	h := w.net.Named(host)
	h.Freeze()
	time.AfterFunc(t.freeze, h.Thaw)
	w.slowWork.Store(int64(t.work))
	if t.lost >= 0 { // once the intent is committed and answered
		time.AfterFunc(10*time.Millisecond, func() { w.add("*** failover, lacks %d records with %d events", t.lost, w.failover(t.lost, 0)) })
	}
}
