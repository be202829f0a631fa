package coalesce

import "time"

// nextFar grants what is there, four times in a round trip. The way is so long that the window
// alone decides how much comes, and it is kept just below what the server would send.
func (c *coalescer) nextFar(left time.Duration) {
	acknowledge(c.raw)
	for wait := c.roundTrip / 4; ; {
		sleep(min(wait, left))
		if left -= wait; left <= 0 || unread(c.raw) > 0 {
			break
		}
	}
	var now traffic
	c.path, now = look(c.raw)
	took := now.at.Sub(c.judged.at)
	if took < c.roundTrip*5/4 {
		c.allow(now)
		return
	}
	came := now.since(c.judged)
	if c.thins(came, took) {
		c.quiet()
		return
	}
	perRoundTrip := int(float64(came.bytes) * float64(c.roundTrip) / float64(took))
	switch {
	case came.singles(min(4<<10, c.segment*3/4)):
		c.narrow(perRoundTrip, now)
	case came.bytes > c.window/2:
		c.best = max(c.best, perRoundTrip)
		c.window = min(c.window+max(c.step, c.window/16), largeWindow)
		c.step = min(2*c.step, c.window/2)
	}
	c.judged = now
	c.open()
	c.allow(now)
}

// narrow is for a far server that the window does not hold back, so that single changes travel. The
// window goes between what came now and the most that has come in whole segments, of which the
// server makes more. What it has been offered before stays so.
func (c *coalescer) narrow(came int, now traffic) {
	if now.bytes < c.offered {
		return
	}
	c.offered = now.bytes + c.window
	c.window = max(min(c.window-c.window/8, (came+max(came, c.best))/2), smallWindow)
	c.best -= c.best / 4
	c.step = 0
}
