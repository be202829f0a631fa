package coalesce

import "time"

const (
	// maxPause is small beside the flush interval.
	maxPause = 20 * time.Millisecond
	minPause = time.Millisecond
	// Of comparePauses as many as tooMany that held the server up make them shorter. Longer ones are
	// tried again after forgetAfter.
	comparePauses = 16
	tooMany       = 12
	forgetAfter   = 256
)

// pauses finds how long a server may be left alone. One whose send buffer is full before the pause
// ends makes nothing in the rest of it, and goes on when it is read.
type pauses struct {
	longest time.Duration // with the round trip, in which nothing is read either
	count   int
	held    int // of the last few, those that held the server up
}

// length is that of the next pause.
func (p *pauses) length(roundTrip time.Duration) time.Duration {
	return max(p.longest-roundTrip, minPause)
}

// learn takes whether the last pause held the server up.
func (p *pauses) learn(heldUp bool) {
	p.count++
	if heldUp {
		p.held++
	}
	switch {
	case p.count%comparePauses != 0:
		return
	case p.held >= tooMany:
		*p = pauses{longest: max(p.longest*3/4, minPause)}
	case p.count >= forgetAfter:
		*p = pauses{longest: min(p.longest*4/3, maxPause)}
	}
	p.held = 0
}
