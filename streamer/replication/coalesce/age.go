package coalesce

import "time"

// age is how long ago the server sent the last message that was read.
type age struct {
	sent   int64         // by the server's clock, microseconds since 1970; 0 when it is not known
	read   time.Time     // when it was read from the socket
	offset time.Duration // by which our clock is ahead, with the way of a message that does not wait
	since  time.Time     // when offset was last looked at

	mark   int64         // a moment by the server's clock; 0 for none
	before time.Duration // for which the server had sent nothing then
}

// note takes when the next message was sent.
func (a *age) note(sent int64) {
	if a.sent < a.mark && sent >= a.mark {
		a.before = time.Duration(a.mark-a.sent) * time.Microsecond
	}
	a.sent = sent
}

// setMark asks for how long the server had sent nothing at a moment by our clock.
func (a *age) setMark(at time.Time) {
	if !a.since.IsZero() {
		a.mark = at.Add(-a.offset).UnixMicro()
	}
}

// passed reports that there is an answer.
func (a *age) passed() bool { return a.sent >= a.mark }

// unknownAge stands for messages that are not dated.
const unknownAge = time.Hour

// at returns the age at now, which is never before it was read.
func (a *age) at(now time.Time) time.Duration {
	if a.sent == 0 {
		return unknownAge
	}
	a.compare(now)
	return a.delay() - a.offset + now.Sub(a.read)
}

// compare compares the clocks. The least delay there was is that of a message that did not wait. So
// that none is missed when the clocks drift apart, it falls by a thousandth of the time: an age
// that is taken for too high shows (nothingWaits), one that is too low does not.
func (a *age) compare(now time.Time) {
	if a.since.IsZero() {
		a.offset, a.since = a.delay(), now
	}
	a.offset = min(a.offset-max(now.Sub(a.since), 0)/1000, a.delay())
	a.since = now
}

// delay is what passed between sending and reading, by two clocks.
func (a *age) delay() time.Duration {
	return time.Duration(a.read.UnixMicro()-a.sent) * time.Microsecond
}

// nothingWaits says that the last message that was read had not waited, but for a while in our
// socket.
func (a *age) nothingWaits(now time.Time) {
	if a.sent != 0 {
		a.compare(now)
		a.offset += (a.delay() - a.offset) / 2
	}
}
