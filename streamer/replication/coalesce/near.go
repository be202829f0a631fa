package coalesce

import (
	"math"
	"time"
)

const (
	// The pace grows by a third in a tenth of a second, and then faster and faster.
	paceTime   = 800 * time.Millisecond
	paceDouble = 50 * time.Millisecond
	// poll is the shortest time between two looks at a socket.
	poll = 100 * time.Microsecond
)

// supply is what a near server has behind what was read last.
type supply int

const (
	little  supply = iota // less came than was read, and for a moment nothing
	singles               // single changes came: the server has no more
	more                  // as much came again, in whole segments
)

// nextNear grants what is there, in left at most.
func (c *coalescer) nextNear(left time.Duration) {
	until := time.Now().Add(left)
	has, now := c.supply(until)
	left = until.Sub(now.at)
	// The kernel gathers segments in the receive buffer as well. One of which a byte is unread
	// takes all of its room, and may keep the window shut.
	rest := has == little && !c.rest && unread(c.raw) > 0
	c.rest = rest
	if left < minPause || has == more && c.due(now) || rest {
		c.allow(now)
		return
	}
	c.follow(has, now)
	c.paused = now
	sleep(min(c.pauses.length()-c.roundTrip, left))
	acknowledge(c.raw)
	_, now = look(c.raw)
	if c.thins(now.since(c.grant), now.at.Sub(c.grant.at)) {
		c.quiet()
		return
	}
	c.window = min(max(int(2*c.pace*c.roundTrip.Seconds()), smallWindow), nearWindow)
	c.open()
	c.allow(now)
}

// supply waits for that to show.
func (c *coalescer) supply(until time.Time) (has supply, now traffic) {
	acknowledge(c.raw)
	for last := (traffic{}); ; sleep(max(c.roundTrip/2, poll)) {
		c.path, now = look(c.raw)
		came := now.since(c.grant)
		if came.segments > 0 && !came.pieces(min(4<<10, c.segment/2)) {
			return singles, now
		}
		if c.replaces(came) {
			return more, now
		}
		if now.bytes != last.bytes {
			last = now
		}
		if now.at.Sub(last.at) > c.roundTrip+minPause || now.at.After(until) {
			return little, now
		}
	}
}

// replaces reports that as much came as was read. The last segment may not fit into the window.
func (c *coalescer) replaces(came traffic) bool {
	return came.segments > 0 && came.bytes+came.bytes/came.segments >= min(c.granted, c.window)/2
}

// due reports that less has come since the last pause began than the pace allows.
func (c *coalescer) due(now traffic) bool {
	came := now.since(c.paused)
	return float64(came.bytes) < c.pace*now.at.Sub(c.paused.at).Seconds()
}

// follow lets the pace follow the server.
func (c *coalescer) follow(has supply, now traffic) {
	switch has {
	case more:
		c.faster(now)
	case singles:
		c.slower(now)
	case little: // that says nothing
	}
}

// faster looks for the pace of a server that has more.
func (c *coalescer) faster(now traffic) {
	took, since := now.at.Sub(c.paused.at), now.at.Sub(c.dry.at)
	c.pace += c.pace * min(1, float64(took)/float64(paceTime)*math.Exp2(float64(since)/float64(paceDouble)))
}

// slower goes a little below the pace of a server that has no more: it has made what came since it
// last had no more.
func (c *coalescer) slower(now traffic) {
	made, took := now.since(c.dry).bytes, now.at.Sub(c.dry.at)
	c.pace = max(c.pace*3/4, quietRate)
	if took > minPause {
		c.pace = max(c.pace, float64(made)/took.Seconds()*7/8)
		c.pauses.learn(made, took)
	}
	c.dry = now
}
