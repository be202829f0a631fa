package coalesce

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

func TestThePaceFollowsTheServer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		has         supply
		dry, paused time.Duration // since then
		made        int
		pace        float64 // of 80 MB/s
	}{
		"no more":                         {singles, 100 * time.Millisecond, 20 * time.Millisecond, 8_000_000, 70e6},
		"no more, and much was made":      {singles, 100 * time.Millisecond, 20 * time.Millisecond, 16_000_000, 140e6},
		"no more, and little was made":    {singles, 100 * time.Millisecond, 20 * time.Millisecond, 1_000_000, 60e6},
		"no more, too soon to know":       {singles, 500 * time.Microsecond, 0, 8_000_000, 60e6},
		"more, for the first time":        {more, 0, 20 * time.Millisecond, 1, 82e6},
		"more for a while":                {more, paceDouble, 20 * time.Millisecond, 0, 84e6},
		"more for long":                   {more, time.Hour, 20 * time.Millisecond, 0, 160e6},
		"for a moment nothing: not known": {little, 100 * time.Millisecond, 20 * time.Millisecond, 8_000_000, 80e6},
	} {
		c := &coalescer{pace: 80e6}
		now := traffic{at: time.Now(), bytes: tc.made}
		c.dry.at, c.paused.at = now.at.Add(-tc.dry), now.at.Add(-tc.paused)
		c.follow(tc.has, now)
		assert.InDelta(t, tc.pace, c.pace, 1, name)
		assert.Equal(t, tc.has == singles, c.dry == now, name)
	}
	c := &coalescer{pace: quietRate}
	c.follow(singles, traffic{at: time.Now()})
	assert.InDelta(t, quietRate, c.pace, 1, "a stream with less is quiet")
}

func TestThePaceAllowsSoMuchSinceThePause(t *testing.T) {
	t.Parallel()
	began := time.Now()
	c := &coalescer{pace: 1e6, paused: traffic{at: began, bytes: 500}}
	at := began.Add(10 * time.Millisecond)
	assert.True(t, c.due(traffic{at: at, bytes: 10_499}))
	assert.False(t, c.due(traffic{at: at, bytes: 10_500}))
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
}

// What is left in the socket may keep the window shut: it is read before a pause, once.
func TestTheRestIsReadBeforeAPause(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	write(t, theirs, make([]byte, 1000))
	co := coalescerOf(w)
	await.True(t, func() bool { return unread(co.raw) == 1000 }, "what was sent")
	co.makeBusy()
	pause := co.paused
	co.nextNear(time.Minute)
	assert.Equal(t, 1000, co.budget)
	assert.Equal(t, pause, co.paused, "no pause")
	co.nextNear(time.Minute)
	assert.NotEqual(t, pause, co.paused, "a pause")
	assert.Equal(t, 1000, co.budget)
	pause, co.rest = co.paused, true
	co.nextNear(minPause / 2)
	assert.Equal(t, pause, co.paused, "no time for a pause")
}

// A server that has more is read on as long as the pace allows.
func TestThePaceDecidesAboutAPause(t *testing.T) {
	needsMark(t)
	t.Parallel()
	for _, pauses := range []bool{false, true} {
		w, theirs := taken(t)
		co := coalescerOf(w)
		co.makeBusy()
		co.granted, co.pace = 32<<10, 1e12
		if pauses {
			co.pace = 1
		}
		write(t, theirs, make([]byte, 20<<10))
		pause := co.paused
		co.nextNear(time.Minute)
		assert.Equal(t, pauses, pause != co.paused)
		assert.Equal(t, 20<<10, co.budget)
	}
}

// Single changes say that the server has no more; whole segments, as many as were read, that it has.
func TestTheSupplyOfAServer(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	co := coalescerOf(w)
	co.makeBusy()
	has, _ := co.supply(soon())
	assert.Equal(t, little, has)
	for range 10 {
		write(t, theirs, make([]byte, 100))
	}
	has, now := co.supply(soon())
	assert.Equal(t, singles, has)
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

// serve lets a server that makes 100 MB/s, and whose send buffer is full after so many bytes, be left
// alone n times.
func (p *pauses) serve(buffer, n int) {
	for range n {
		length := p.length()
		p.learn(min(buffer, int(length.Microseconds())*100), length)
	}
}

func TestThePauseOfAServerWhoseSendBufferIsSmall(t *testing.T) {
	t.Parallel()
	p := &pauses{longest: maxPause}
	p.serve(4<<20, 10*forgetAfter)
	assert.Equal(t, maxPause, p.longest, "it has room for 20 ms")
	p.serve(500_000, 10*learnAfter)
	assert.Less(t, p.longest, 8*time.Millisecond)
	assert.Greater(t, p.longest, 4*time.Millisecond)
	p.serve(10, 100*learnAfter)
	assert.Equal(t, minPause, p.longest)
	p.serve(4<<20, 20*forgetAfter)
	assert.Equal(t, maxPause, p.longest, "its buffer has grown")
}

func TestAServerWithASmallSendBufferIsNotHeldUp(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	require.NoError(t, theirs.(*net.TCPConn).SetWriteBuffer(16<<10))
	go stream(theirs, 10_000_000, 275, 5*time.Microsecond)
	co := coalescerOf(w)
	await.True(t, func() bool {
		receive(t, w, 10_000)
		return co.pauses.longest < maxPause
	}, "a shorter pause")
}
