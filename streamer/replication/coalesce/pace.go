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

	// Bounds of the pause, and where it begins. The longest is small beside the flush interval.
	// A round trip of firstPause or more is pause enough.
	minPause   = time.Millisecond
	firstPause = 4 * time.Millisecond
	maxPause   = 20 * time.Millisecond
	// steadyPauses without a pause mean that the sender always waits for the window.
	steadyPauses = 4

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
// The window of a busy stream is kept nearly full: then the sender's kernel coalesces.
// So only a chunk is read at a time. While it is replaced within a round trip, and in whole
// segments, the sender has more, and the next chunk is read at once. Otherwise there is a
// pause, in which the sender's changes gather behind the full window. Pause, chunk and
// window follow what they bring:
//
//   - small segments make the pause longer, unless it brings several windows already, and the
//     chunk smaller; whole ones make the pause shorter;
//   - a sender that always waits for the window gets larger chunks, and then a larger window;
//   - the window is at least twice what the sender sends in a round trip.
//
// A read of a busy stream never blocks: a chunk is not more than what waits in the socket,
// and when nothing came in a round trip and a pause, the stream is quiet again. Of a stream
// that brings less than a chunk in a pause nothing is left in the socket.
type coalescer struct {
	raw syscall.RawConn
	path
	busy bool

	window int           // bytes that may wait in the socket
	chunk  int           // bytes to read at a time
	step   int           // by which the window of a far server grows at first
	best   int           // bytes that came from a far server in a round trip, in whole segments
	pause  time.Duration // with the round trip

	budget  int     // bytes that may be read before the next look
	granted int     // the budget at first
	grant   traffic // when it was granted
	judged  traffic // when pause, chunk and window were last adapted
	offered int     // bytes that a far server may have sent by then, whatever the window is now
	paused  time.Time
	thin    int // pauses that brought little, one after the other

	reads, bytes int // of the current sample of a quiet stream
	since        time.Time
}

// path is what the kernel knows about the way to the server.
type path struct {
	roundTrip time.Duration
	segment   int // bytes that a segment carries at most
}

// traffic is what has come so far.
type traffic struct {
	at              time.Time
	bytes, segments int
}

func (t traffic) since(before traffic) traffic {
	return traffic{bytes: t.bytes - before.bytes, segments: t.segments - before.segments}
}

// pieces reports whether what has come is segments of at least size bytes on average.
func (t traffic) pieces(size int) bool { return t.bytes >= t.segments*size }

func newCoalescer(raw syscall.RawConn) *coalescer {
	c := &coalescer{raw: raw, window: smallWindow, pause: firstPause}
	c.path, _ = look(raw)
	c.chunk = c.least()
	if c.lowLatency() {
		setWindow(raw, c.window, true)
	}
	return c
}

// least is the smallest chunk: the receiver's kernel does not announce less than a segment.
func (c *coalescer) least() int { return max(smallWindow/8, c.segment) }

// limit returns how many of n bytes to read now. On a busy stream it waits until it is
// worth reading, if deadline leaves time for that.
func (c *coalescer) limit(deadline *time.Time, n int) int {
	if c.busy && c.budget <= 0 {
		left := maxPause + c.roundTrip
		if deadline != nil {
			left = min(left, time.Until(*deadline)/2)
		}
		if c.lowLatency() {
			c.next(left)
		} else {
			c.nextFar(left)
		}
	}
	if !c.busy {
		return n
	}
	return min(n, c.budget)
}

// next grants the next chunk, in left at most.
func (c *coalescer) next(left time.Duration) {
	var now traffic
	acknowledge(c.raw)
	if c.path, now = look(c.raw); !c.replaced(now) {
		wait := min(c.roundTrip, left)
		sleep(wait)
		left -= wait
		_, now = look(c.raw)
	}
	if c.replaced(now) {
		if c.granted >= c.chunk && now.at.Sub(c.paused) > steadyPauses*c.pause {
			c.grow()
			c.open()
		}
		c.allow(max(c.chunk, unread(c.raw)+c.chunk-c.window), now)
		return
	}
	if left < minPause { // no time for a pause
		c.allow(largeWindow, now)
		return
	}
	wait := min(c.pause-c.roundTrip, left-minPause)
	sleep(wait)
	acknowledge(c.raw)
	if _, now = look(c.raw); now.bytes == c.grant.bytes {
		sleep(min(max(c.roundTrip, minPause), left-max(wait, 0)))
		_, now = look(c.raw)
	}
	c.paused = now.at
	c.judge(now)
}

// grow is for a sender that has more than the window lets through, in whole segments.
func (c *coalescer) grow() {
	c.chunk += c.chunk / 8
	c.window = min(max(c.window, c.chunk), nearWindow)
	c.chunk = min(c.chunk, c.window)
}

// replaced reports that what was read has been replaced, and in whole segments.
func (c *coalescer) replaced(now traffic) bool {
	came := now.since(c.grant)
	if came.segments == 0 {
		return false
	}
	// The last one may not fit into the window.
	enough := came.bytes+came.bytes/came.segments >= min(c.granted, c.chunk)/2
	return enough && came.pieces(min(4<<10, c.segment/2))
}

// judge learns from a pause.
func (c *coalescer) judge(now traffic) {
	came := now.since(c.grant)
	if c.thins(came, now.at.Sub(c.grant.at)) {
		c.quiet()
		return
	}
	cycle := now.since(c.judged)
	small := !cycle.pieces(min(8<<10, c.segment*3/4))
	if small {
		c.chunk -= c.chunk / 8
		c.window = max(c.window-c.window/16, smallWindow)
	}
	switch {
	case !small && c.pause == minPause:
		c.grow()
	case !small || cycle.bytes > 16*c.window:
		c.pause = max(c.pause-c.pause/8, minPause)
	case cycle.bytes < 8*c.window:
		c.pause = min(c.pause+c.pause/4, maxPause)
	}
	c.adaptWindow(now)
	n := unread(c.raw)
	if came.bytes >= c.chunk { // the stream is not thinning out
		n = max(c.chunk, n-2*came.bytes, n+c.chunk-c.window)
	}
	c.allow(n, now)
}

// thins reports that nothing came, or little several times.
func (c *coalescer) thins(came traffic, took time.Duration) bool {
	c.thin++
	if came.bytes >= int(took.Microseconds())*quietRate/1_000_000 {
		c.thin = 0
	}
	return came.bytes == 0 && unread(c.raw) == 0 || c.thin >= quietAfter
}

// adaptWindow makes the window follow what the server sends in a round trip.
func (c *coalescer) adaptWindow(now traffic) {
	if took := now.at.Sub(c.judged.at); took > 0 {
		inTransit := float64(now.since(c.judged).bytes) * float64(c.roundTrip) / float64(took)
		c.window = min(max(int(2*inTransit), c.window, smallWindow), nearWindow)
		c.chunk = max(c.chunk, int(inTransit*7/8))
	}
	c.judged = now
	c.open()
	c.chunk = min(max(c.chunk, c.least()), c.window)
}

// open gives the kernel the window, which may have changed it.
func (c *coalescer) open() {
	setWindow(c.raw, c.window, c.lowLatency())
	setLowWater(c.raw, c.window)
}

// lowLatency reports that a round trip is shorter than a pause.
func (c *coalescer) lowLatency() bool { return c.roundTrip < firstPause }

// allow grants n bytes of what is there.
func (c *coalescer) allow(n int, now traffic) {
	c.granted = min(n, unread(c.raw))
	c.budget, c.grant = c.granted, now
	if c.granted == 0 {
		c.quiet()
	}
}

func (c *coalescer) quiet() {
	setLowWater(c.raw, 1)
	if !c.lowLatency() { // there the window decides how fast a burst comes
		releaseWindow(c.raw)
	}
	c.busy, c.reads, c.bytes = false, 0, 0
}

// observe learns from a read that began at start and brought n bytes.
func (c *coalescer) observe(start time.Time, n int) {
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

// begin makes the stream busy, which has brought rate bytes per second so far.
func (c *coalescer) begin(rate float64) {
	c.window = min(max(int(2*rate*c.roundTrip.Seconds()), smallWindow), largeWindow)
	c.chunk, c.step = c.window, c.window/2
	c.open()
	_, now := look(c.raw)
	c.busy, c.thin = true, 0
	c.judged, c.grant, c.budget, c.granted, c.paused = now, now, 0, 0, now.at
}
