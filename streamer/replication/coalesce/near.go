package coalesce

import "time"

const (
	// poll is the shortest time between two looks at a socket, pollLong the longest.
	poll     = 100 * time.Microsecond
	pollLong = time.Millisecond
	// fewSegments do not tell whether a server has more.
	fewSegments = 4
)

// supply is what a near server has behind what was read last.
type supply int

const (
	little  supply = iota // less came than was read, for as long as may be waited
	rest                  // for a moment nothing came, and something is unread
	singles               // single changes came: the server has no more
	more                  // as much came again, in whole segments
)

// nextNear grants what is there, in left at most.
func (c *coalescer) nextNear(left time.Duration) {
	until := time.Now().Add(left)
	has, now := c.supply(until)
	switch {
	case has == rest || until.Sub(now.at) < minPause && has != little:
		c.rested = has == rest
		c.allow(now)
	case has == little: // the wait was a pause
		c.resume()
	case has == more && c.behind(now.at):
		c.rested = false
		if now.at.Sub(c.cycle.at) >= maxPause {
			c.measure(now)
			c.widen(c.fitting())
		}
		c.allow(now)
	default:
		if has == singles {
			c.age.nothingWaits(now.at)
		}
		c.measure(now)
		c.pause(min(c.pauses.length(c.roundTrip), until.Sub(now.at)))
		c.resume()
	}
}

// pause leaves the server alone for d. It held the server up when before its last quarter nothing was
// sent for an eighth of it. To know that takes what is read after the next pause, sometimes.
func (c *coalescer) pause(d time.Duration) {
	known := c.age.passed()
	if known && c.lastPause > 0 {
		c.pauses.learn(c.age.before > c.lastPause/8)
	}
	sleep(d)
	if !known && !c.asked {
		c.asked = true
		return
	}
	c.age.setMark(time.Now().Add(-d / 4))
	c.lastPause, c.asked = d, false
}

// resume ends a pause.
func (c *coalescer) resume() {
	acknowledge(c.raw)
	c.rested = false
	_, now := look(c.raw)
	if c.thins(now.since(c.grant), now.at.Sub(c.grant.at)) {
		c.quiet()
		return
	}
	c.window = c.fitting()
	c.open()
	c.allow(now)
}

// supply waits for that to show.
func (c *coalescer) supply(until time.Time) (has supply, now traffic) {
	acknowledge(c.raw)
	var last traffic
	for wait := max(c.roundTrip/2, poll); ; wait = min(2*wait, pollLong) {
		c.path, now = look(c.raw)
		came := now.since(c.grant)
		switch {
		case came.segments >= fewSegments && came.singles(min(4<<10, c.segment/2)):
			return singles, now
		case c.replaces(came):
			return more, now
		case !now.at.Before(until):
			return little, now
		case now.bytes != last.bytes:
			last, wait = now, max(c.roundTrip/2, poll)
		case !c.rested && now.at.Sub(last.at) > c.roundTrip+minPause && unread(c.raw) > 0:
			// The kernel gathers segments in the receive buffer as well. One of which a byte is
			// unread takes all of its room, and may keep the window shut.
			return rest, now
		}
		sleep(min(wait, until.Sub(now.at)))
	}
}

// replaces reports that as much came as was read, and not just a few changes. The last segment may
// not fit into the window.
func (c *coalescer) replaces(came traffic) bool {
	enough := max(min(c.granted, c.window)/2, smallWindow/4)
	return came.segments > 0 && came.bytes+came.bytes/came.segments >= enough
}

// behind reports that more waits than the window and another one, which is there to fill it again.
// A server may be no further behind than half of a pause: its send buffer holds only so much.
func (c *coalescer) behind(now time.Time) bool {
	windows := time.Duration(2 * float64(c.window) / c.rate * float64(time.Second))
	return c.age.at(now) > min(windows, maxPause/2)
}

// measure takes what came since the last time.
func (c *coalescer) measure(now traffic) {
	took := max(now.at.Sub(c.cycle.at), minPause)
	c.rate = max((c.rate+float64(now.since(c.cycle).bytes)/took.Seconds())/2, quietRate)
	c.cycle = now
}

// fitting is the window that the server fills in two round trips.
func (c *coalescer) fitting() int {
	return min(max(int(2*c.rate*c.roundTrip.Seconds()), smallWindow), nearWindow)
}
