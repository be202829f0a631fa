package coalesce

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"diehard/shared/dev/await"
)

// A server is behind when more waits there than the window and another one, or for half of a pause.
func TestAServerThatIsBehind(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tc := range map[string]struct {
		age    time.Duration
		rate   float64
		behind bool
	}{
		"less than two windows":      {2500 * time.Microsecond, 50e6, false},
		"more than two windows":      {2700 * time.Microsecond, 50e6, true},
		"half of a pause":            {maxPause/2 - 20*time.Microsecond, 1e6, false},
		"a bit more, of few changes": {maxPause/2 + 10*time.Microsecond, 1e6, true},
		"not dated":                  {unknownAge, 1e3, true},
	} {
		c := &coalescer{window: smallWindow, rate: tc.rate}
		if tc.age != unknownAge {
			c.age = age{sent: now.UnixMicro(), read: now, since: now}
			c.age.offset = c.age.delay()
		}
		assert.Equal(t, tc.behind, c.behind(now.Add(tc.age)), name)
	}
}

func TestTheRateIsMeasured(t *testing.T) {
	t.Parallel()
	now := time.Now()
	c := &coalescer{rate: 10e6, cycle: traffic{at: now, bytes: 1000}}
	now = now.Add(10 * time.Millisecond)
	c.measure(traffic{at: now, bytes: 301_000})
	assert.InDelta(t, 20e6, c.rate, 1, "half of what was measured, half of what was known")
	c.measure(traffic{at: now, bytes: 301_000 + 20_000})
	assert.InDelta(t, 20e6, c.rate, 1, "too soon to know is a millisecond")
	for range 20 {
		now = now.Add(time.Second)
		c.measure(traffic{at: now, bytes: 321_000})
	}
	assert.InDelta(t, quietRate, c.rate, 1, "a stream with less is quiet")
}

func TestTheWindowOfANearServer(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		rate      float64
		roundTrip time.Duration
		window    int
	}{
		{100e6, 0, smallWindow},
		{100e6, 200 * time.Microsecond, smallWindow},
		{100e6, time.Millisecond, 200_000},
		{100e6, 2 * time.Millisecond, 400_000},
		{1e9, 3 * time.Millisecond, nearWindow},
	} {
		c := &coalescer{rate: tc.rate, path: path{roundTrip: tc.roundTrip}}
		assert.Equal(t, tc.window, c.fitting(), "%+v", tc)
	}
}

// A server that has more fills the window again at once, but for a segment that does not fit.
func TestWhatWasReadIsReplaced(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		bytes, segments int
		replaced        bool
	}{
		"nothing":     {0, 0, false},
		"all":         {96 << 10, 6, true},
		"but for one": {48 << 10, 3, true},
		"but for two": {32 << 10, 2, false},
	} {
		c := &coalescer{granted: 100 << 10, window: 120 << 10}
		assert.Equal(t, tc.replaced, c.replaces(traffic{bytes: tc.bytes, segments: tc.segments}), name)
		c = &coalescer{granted: 120 << 10, window: 100 << 10}
		assert.Equal(t, tc.replaced, c.replaces(traffic{bytes: tc.bytes, segments: tc.segments}), name+", of a window")
	}
	c := &coalescer{granted: 100, window: smallWindow}
	assert.False(t, c.replaces(traffic{bytes: 3000, segments: 3}), "some changes after some others")
	assert.True(t, c.replaces(traffic{bytes: 16 << 10, segments: 8}))
}

// Segments that were lost or overtaken say nothing: others were sent twice.
func TestSingleChanges(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		came    traffic
		singles bool
	}{
		"small":                 {traffic{bytes: 9999, segments: 10}, true},
		"whole":                 {traffic{bytes: 10_000, segments: 10}, false},
		"nothing":               {traffic{segments: 10}, false},
		"small, in wrong order": {traffic{bytes: 9999, segments: 10, disordered: 1}, false},
	} {
		assert.Equal(t, tc.singles, tc.came.singles(1000), name)
	}
}

// What is left in the socket may keep the window shut: it is read before a pause, once.
func TestTheRestIsReadBeforeAPause(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	makeBusy(t, w, theirs)
	co := coalescerOf(w)
	co.allow(co.grant) // nothing was there
	co.begin(busyRate)
	write(t, theirs, make([]byte, 1000))
	await.True(t, func() bool { return unread(co.raw) == 1000 }, "what was sent")
	has, _ := co.supply(soon())
	assert.Equal(t, rest, has)
	co.nextNear(time.Minute)
	assert.Equal(t, 1000, co.budget)
	assert.True(t, co.rested)
	has, now := co.supply(time.Now().Add(2 * minPause))
	assert.Equal(t, little, has, "not twice")
	assert.False(t, now.at.IsZero())
	co.nextNear(2 * minPause)
	assert.False(t, co.rested, "the wait was a pause")
	assert.Equal(t, 1000, co.budget)
}

// A server that has more is read on as long as it is behind, and left alone then.
func TestAServerIsReadUntilLittleWaits(t *testing.T) {
	needsMark(t)
	t.Parallel()
	for _, behind := range []bool{true, false} {
		w, theirs := taken(t)
		makeBusy(t, w, theirs)
		co := coalescerOf(w)
		co.granted, co.window = 32<<10, 32<<10
		co.cycle.at = time.Now().Add(-maxPause)
		if !behind { // not on the slowest machine
			never := time.Now().Add(time.Hour)
			co.age = age{sent: never.UnixMicro(), read: never}
		}
		write(t, theirs, make([]byte, 20<<10))
		co.nextNear(time.Minute)
		assert.Equal(t, behind, co.lastPause == 0, "no pause")
		assert.Equal(t, 20<<10, co.budget)
		assert.Equal(t, smallWindow, co.window, "the window that fits, with a pause and without")
	}
}

// Single changes say that the server has no more; whole segments, as many as were read, that it has.
func TestTheSupplyOfAServer(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	makeBusy(t, w, theirs)
	co := coalescerOf(w)
	has, _ := co.supply(time.Now().Add(2 * minPause))
	assert.Equal(t, little, has, "nothing comes: no rest")
	for range fewSegments - 1 {
		write(t, theirs, make([]byte, 100))
	}
	co.rested = true
	has, _ = co.supply(time.Now().Add(2 * minPause))
	assert.Equal(t, little, has, "too few to tell")
	write(t, theirs, make([]byte, 100))
	has, _ = co.supply(soon())
	assert.Equal(t, singles, has)
	_, now := look(co.raw)
	co.grant, co.granted = now, 32<<10
	write(t, theirs, make([]byte, 20<<10))
	has, now = co.supply(soon())
	assert.Equal(t, more, has)
	assert.Positive(t, now.since(co.grant).bytes)
	co.grant = now
	has, now = co.supply(now.at)
	assert.Equal(t, little, has, "there is no time to wait")
	assert.Less(t, now.at.Sub(co.grant.at), time.Minute)
}

// A server with more than the window lets through is read without pauses, and the window follows it.
func TestTheWindowGrowsWithoutAPause(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	makeBusy(t, w, theirs)
	co := coalescerOf(w)
	co.roundTrip = time.Millisecond
	co.rate = 200e6
	co.widen(co.fitting())
	assert.Equal(t, 400_000, co.window)
	co.rate = 1e6
	co.widen(co.fitting())
	assert.Equal(t, 400_000, co.window, "it shrinks in a pause")
	assert.Equal(t, co.window, markOf(t, co))
}
