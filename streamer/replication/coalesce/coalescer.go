package coalesce

import (
	"syscall"
	"time"
)

const (
	// smallWindow is what may wait in the socket. Few single changes fill it, and then the
	// sender's kernel coalesces.
	smallWindow = 64 << 10
	// largeWindow is as much as Linux gives a connection by default. A near server fills less.
	largeWindow = 4 << 20
	nearWindow  = 1 << 20

	// A round trip of nearBelow or more is pause enough.
	nearBelow = 4 * time.Millisecond

	// busySample reads that came faster than busyInterval each make a stream busy: more
	// than 5,000 per second. So do reads that bring busyRate bytes per second.
	busySample   = 64
	busyInterval = 200 * time.Microsecond
	busyRate     = 2 << 20
	// After quietAfter pauses with less than quietRate bytes per second a pause does not pay.
	quietRate  = 1 << 20
	quietAfter = 4
)

// coalescer decides how much of one socket is read, and when.
//
// As long as a server has more than the window lets through, its kernel coalesces: what is read is
// replaced at once, in whole segments. When the server has no more, its next changes travel alone,
// until they have filled the window. So a busy stream of a near server is read with pauses, and
// between two of them until what waits is little more than the window (nextNear). The window of a
// far server is kept a little below what it would send in a round trip (nextFar).
//
// A read of a busy stream never blocks: it is granted what waits in the socket. A stream that
// brought nothing in a pause, or little in some, is quiet again.
type coalescer struct {
	raw syscall.RawConn
	path
	busy bool

	window  int     // bytes that may wait in the socket
	budget  int     // bytes that may be read before the next look
	granted int     // the budget at first
	grant   traffic // when it was granted
	thin    int     // pauses that brought little, one after the other

	// Of a near server.
	age    age
	rate   float64 // bytes per second that came lately
	cycle  traffic // when rate was last measured
	pauses pauses
	rested bool // what was granted was the rest in the socket

	lastPause time.Duration // the last one of which it will be known whether it held the server up
	asked     bool          // it was not known at the last pause

	// Of a far server.
	step    int     // by which the window grows at first
	best    int     // bytes that came in a round trip, in whole segments
	judged  traffic // when the window was last adapted
	offered int     // bytes that it may have sent by then, whatever the window is now

	reads, bytes int // of the current sample of a quiet stream
	since        time.Time
}

// path is what the kernel knows about the way to the server.
type path struct {
	roundTrip time.Duration
	segment   int // bytes that a segment carries at most
}

// traffic is what has come so far. Where the kernel does not count segments, they are 0.
type traffic struct {
	at                          time.Time
	bytes, segments, disordered int
}

func (t traffic) since(before traffic) traffic {
	return traffic{
		bytes: t.bytes - before.bytes, segments: t.segments - before.segments,
		disordered: t.disordered - before.disordered,
	}
}

// singles reports whether what has come is segments of less than size bytes on average. It is not
// known when some had been lost, or overtaken: then others were sent twice.
func (t traffic) singles(size int) bool {
	return t.bytes > 0 && t.bytes < t.segments*size && t.disordered == 0
}

func newCoalescer(raw syscall.RawConn) *coalescer {
	c := &coalescer{raw: raw, window: smallWindow, pauses: pauses{longest: maxPause}}
	c.path, _ = look(raw)
	if c.near() {
		setWindow(raw, c.window, true)
	}
	return c
}

// limit returns how many of n bytes to read now. On a busy stream it waits until it is
// worth reading, if deadline leaves time for that.
func (c *coalescer) limit(deadline *time.Time, n int) int {
	if c.busy && c.budget <= 0 {
		left := maxPause + c.roundTrip
		if deadline != nil {
			left = min(left, time.Until(*deadline)/2)
		}
		if c.near() {
			c.nextNear(left)
		} else {
			c.nextFar(left)
		}
	}
	if !c.busy {
		return n
	}
	return min(n, c.budget)
}

// thins reports that nothing came, or little several times.
func (c *coalescer) thins(came traffic, took time.Duration) bool {
	c.thin++
	if came.bytes >= int(took.Microseconds())*quietRate/1_000_000 {
		c.thin = 0
	}
	return came.bytes == 0 && unread(c.raw) == 0 || c.thin >= quietAfter
}

// widen opens a window that is larger than the present one.
func (c *coalescer) widen(window int) {
	if window > c.window {
		c.window = window
		c.open()
	}
}

// open gives the kernel the window, which may have changed it.
func (c *coalescer) open() {
	setWindow(c.raw, c.window, c.near())
	setLowWater(c.raw, c.window)
}

// near reports that a pause is worth while.
func (c *coalescer) near() bool { return c.roundTrip < nearBelow }

// allow grants what is there.
func (c *coalescer) allow(now traffic) {
	c.granted = unread(c.raw)
	c.budget, c.grant = c.granted, now
	if c.granted == 0 {
		c.quiet()
	}
}

func (c *coalescer) quiet() {
	setLowWater(c.raw, 1)
	if !c.near() { // there the window decides how fast a burst comes
		releaseWindow(c.raw)
	}
	c.busy, c.reads, c.bytes = false, 0, 0
}

// observe learns from a read that began at start and brought n bytes.
func (c *coalescer) observe(start time.Time, n int) {
	c.age.read = time.Now()
	if c.busy {
		c.budget -= n
		return
	}
	if c.reads == 0 {
		c.since, c.bytes = start, 0
	}
	c.reads++
	c.bytes += n
	if c.reads < busySample {
		return
	}
	took := start.Sub(c.since)
	if took < (busySample-1)*busyInterval || c.bytes > int(took.Microseconds())*busyRate/1_000_000 {
		c.begin(float64(c.bytes) / max(took, time.Millisecond).Seconds())
	}
	c.reads = 0
}

// begin makes the stream busy, which has brought rate bytes per second so far, unless the kernel
// does not count segments.
func (c *coalescer) begin(rate float64) {
	var now traffic
	c.path, now = look(c.raw)
	if now.segments == 0 {
		return
	}
	c.rate = max(c.rate, rate)
	if c.near() {
		c.window = c.fitting()
	} else {
		c.window = min(max(int(2*rate*c.roundTrip.Seconds()), smallWindow), largeWindow)
	}
	c.step = c.window / 2
	c.open()
	c.busy, c.thin, c.rested = true, 0, false
	c.budget, c.granted = 0, 0
	c.judged, c.grant, c.cycle = now, now, now
	c.age.mark, c.lastPause, c.asked = 0, 0, false
}
