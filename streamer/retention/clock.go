package retention

import "time"

// clockTolerance is how much faster than ours PostgreSQL's clock may run.
const clockTolerance = time.Minute

// clock guards against a clock that jumps ahead, here or at PostgreSQL: what it would
// retire, the right time would keep. The zero value is ready.
type clock struct {
	first   time.Time // PostgreSQL's, at the first call
	started time.Time // ours then, which time.Since measures without steps
}

// trusted returns the earliest of three times: PostgreSQL's, ours, and PostgreSQL's first
// plus what has passed since. It may be late by the time that this machine slept.
func (c *clock) trusted(server time.Time) time.Time {
	if c.started.IsZero() {
		c.first, c.started = server, time.Now()
	}
	earliest := server
	for _, t := range []time.Time{time.Now(), c.first.Add(time.Since(c.started) + clockTolerance)} {
		if t.Before(earliest) {
			earliest = t
		}
	}
	return earliest
}
