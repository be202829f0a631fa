package coalesce

import "time"

const (
	// maxPause is small beside the flush interval.
	maxPause = 20 * time.Millisecond
	minPause = time.Millisecond
	// Lengths are compared after learnAfter times without more, and longer ones tried after forgetAfter.
	learnAfter  = 32
	forgetAfter = 256
)

// pauses finds how long a server may be left alone. One whose send buffer is full before the pause
// ends makes the less the longer the pause is. So the length alternates, and when more is made with
// the shorter one, both become shorter.
type pauses struct {
	longest time.Duration
	short   bool // the shorter one is in use
	made    [2]struct {
		bytes int
		took  time.Duration
	}
	samples int
}

func (p *pauses) length() time.Duration {
	if p.short {
		return p.longest * 3 / 4
	}
	return p.longest
}

// learn takes what the server made while the pauses had this length.
func (p *pauses) learn(bytes int, took time.Duration) {
	made := &p.made[0]
	if p.short {
		made = &p.made[1]
	}
	made.bytes += bytes
	made.took += took
	p.short = !p.short
	p.samples++
	switch {
	case p.samples%learnAfter != 0:
	case p.rate(1) > p.rate(0)*9/8:
		*p = pauses{longest: max(p.longest*3/4, minPause)}
	case p.samples == forgetAfter:
		*p = pauses{longest: min(p.longest*4/3, maxPause)}
	}
}

func (p *pauses) rate(i int) float64 {
	return float64(p.made[i].bytes) / max(p.made[i].took, time.Microsecond).Seconds()
}
