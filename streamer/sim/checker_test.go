package sim_test

import (
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/pipeline"
	"diehard/streamer/sim/simch"
	"diehard/streamer/sim/simpg"
)

// checker is the small model that the world is held to: nothing lost, nothing twice,
// in order, and nothing confirmed that is not durable.
type checker struct {
	trace *trace

	mu      sync.Mutex
	events  map[[16]byte]*published
	order   []*published // of the present timeline, as committed
	checked int          // of order, found durable when they were confirmed
	last    map[string]place
	bad     []string

	foreign bool // another client has moved the slot since the operator last looked
	lossy   bool // a failover has lost events since

	reported int // events that a streamer has missed after a failover
}

// published is what is known of an event.
type published struct {
	id          [16]byte
	commit      simpg.Commit
	at          time.Time
	lost        bool // in a failover
	excused     bool // the operator brings it back
	meanwhile   bool // committed while a slot was being made, and before its beginning
	rows        int  // in event_log, ever
	deadLetters int  // in the dead-letter table, ever
	pushed      int  // into the view
	taken       bool // by a foreign reader
	poisoned    bool
}

func (e *published) durable() bool { return e.rows > 0 || e.deadLetters > 0 }

// place is where a source's last row stands.
type place struct {
	lsn uint64
	seq uint32
}

func newChecker(t *trace) *checker {
	return &checker{trace: t, events: make(map[[16]byte]*published), last: make(map[string]place)}
}

func (c *checker) violation(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.trace.add("VIOLATION %s", text)
	c.bad = append(c.bad, text)
}

// failed returns what went wrong.
func (c *checker) failed() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bad
}

func (c *checker) published(events []simpg.Event, at simpg.Commit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range events {
		p := &published{id: e.ID, commit: at, at: time.Now(), poisoned: isPoison(e.Context)}
		c.events[e.ID] = p
		c.order = append(c.order, p)
	}
}

// written is called for each block that became rows of event_log.
func (c *checker) written(p *simch.Part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dead := p.Table == deadLetter
	if !dead && p.Table != eventLog {
		c.pushed(p)
		return
	}
	c.trace.add("ClickHouse: %s + %d rows, token %s, query %s", p.Table, len(p.Rows), p.Token, p.QueryID)
	for _, r := range p.Rows {
		e := c.events[r.ID]
		if e == nil {
			c.violation("a row of no event: %x at %s/%d", r.ID[:4], pglogrepl.LSN(r.LSN), r.Seq)
			continue
		}
		if dead {
			e.deadLetters++
			continue
		}
		if e.rows++; e.rows > 1 {
			c.violation("event %x at %s/%d is in event_log %d times", e.id[:4], pglogrepl.LSN(r.LSN), r.Seq, e.rows)
		}
		if uint64(e.commit.LSN) != r.LSN {
			c.violation("event %x was committed at %s and says %s", e.id[:4], e.commit.LSN, pglogrepl.LSN(r.LSN))
		}
		at := place{r.LSN, r.Seq}
		if last := c.last[r.Source]; !e.excused && (at.lsn < last.lsn || at.lsn == last.lsn && at.seq <= last.seq) {
			c.violation("out of order: %s/%d comes behind %s/%d", pglogrepl.LSN(r.LSN), r.Seq, pglogrepl.LSN(last.lsn), last.seq)
		}
		c.last[r.Source] = at
	}
}

// pushed is called for each block that a view got.
func (c *checker) pushed(p *simch.Part) {
	for _, r := range p.Rows {
		if e := c.events[r.ID]; e != nil {
			if e.pushed++; e.pushed > 1 {
				c.violation("event %x at %s/%d is in the view %d times", e.id[:4], pglogrepl.LSN(r.LSN), r.Seq, e.pushed)
			}
		}
	}
}

// confirmed is called when a streamer moves its slot.
func (c *checker) confirmed(slot string, lsn, recorded pglogrepl.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trace.add("PostgreSQL: %s confirms %s", slot, lsn)
	if lsn > recorded {
		c.violation("%s is confirmed and the record allows %s", lsn, recorded)
	}
	for ; c.checked < len(c.order) && c.order[c.checked].commit.End <= lsn; c.checked++ {
		if e := c.order[c.checked]; !e.durable() && !e.excused && !e.taken {
			c.violation("%s is confirmed, and event %x, committed at %s, is nowhere in ClickHouse", lsn, e.id[:4], e.commit.LSN)
		}
	}
}

// created is called when a slot is made. What was committed before it is a replay's work.
func (c *checker) created(slot string, lsn pglogrepl.LSN, began time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trace.add("PostgreSQL: %s is made at %s", slot, lsn)
	for _, e := range c.order {
		if e.commit.End <= lsn {
			e.excused, e.meanwhile = true, e.meanwhile || !e.at.Before(began)
		}
	}
}

// failover forgets what the new primary lacks.
func (c *checker) failover(lost []simpg.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range lost {
		c.events[e.ID].lost = true
		c.lossy = true
	}
	c.order = c.order[:len(c.order)-len(lost)]
	c.checked = min(c.checked, len(c.order))
}

// foreignReader notes what the stream does not bring any more, up to lsn. A streamer must
// refuse to run before the world ends.
func (c *checker) foreignReader(lsn pglogrepl.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.foreign = true
	for _, e := range c.order {
		e.taken = e.taken || e.commit.End <= lsn && !e.durable()
	}
}

// slotGone notes that a failover left no slot.
func (c *checker) slotGone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.foreign = true
}

// refused judges a streamer that stops and asks for an operator.
func (c *checker) refused(err error) (justified bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	anyLost, unreplayed := false, false
	for _, e := range c.events {
		anyLost = anyLost || e.lost && e.durable() && !e.excused
		unreplayed = unreplayed || e.meanwhile && !e.lost && !e.durable()
	}
	if c.foreign || c.lossy && anyLost || unreplayed {
		return true
	}
	c.violation("a streamer refuses to run without need: %v", err)
	return false
}

// observer has the operator bring back what a streamer misses, which must be missing.
type observer struct {
	pipeline.NoopObserver
	*checker
}

func (o observer) EventsMissing(err *pipeline.MissingError) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, row := range err.Rows {
		e := o.events[row.ID]
		if e == nil || e.durable() {
			o.violation("event %x counts as missing and is there", row.ID)
			continue
		}
		e.excused = true
	}
	o.reported += len(err.Rows)
}

// excuse is the operator's work after a refusal: a new slot, and a replay of what is missing.
func (c *checker) excuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		e.excused = true
	}
	c.foreign, c.lossy = false, false
}

// missing are the events that must be durable and are not.
func (c *checker) missing() (list []*published) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.order {
		if !e.durable() && !e.excused && !e.lost {
			list = append(list, e)
		}
	}
	return list
}

func (c *checker) complain(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.violation(format, args...)
}
