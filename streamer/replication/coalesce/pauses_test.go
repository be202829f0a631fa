package coalesce

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

// serve lets a server be left alone n times, whose send buffer is full after d.
func (p *pauses) serve(n int, d time.Duration) {
	for range n {
		p.learn(p.length(0) > d)
	}
}

func TestThePauseOfAServerWhoseSendBufferIsSmall(t *testing.T) {
	t.Parallel()
	p := &pauses{longest: maxPause}
	p.serve(10*forgetAfter, maxPause)
	assert.Equal(t, maxPause, p.longest, "it has room for 20 ms")
	p.serve(comparePauses-1, 5*time.Millisecond)
	assert.Equal(t, maxPause, p.longest, "too few to tell")
	p.serve(1, 5*time.Millisecond)
	assert.Equal(t, maxPause*3/4, p.longest)
	p.serve(10*comparePauses, 5*time.Millisecond)
	assert.Less(t, p.longest, 5*time.Millisecond)
	assert.Greater(t, p.longest, 3*time.Millisecond)
	p.serve(100*comparePauses, 0)
	assert.Equal(t, minPause, p.longest)
	p.serve(20*forgetAfter, maxPause)
	assert.Equal(t, maxPause, p.longest, "its buffer has grown")
}

// A server that now and then does something else is no reason for short pauses.
func TestThePauseOfAnUnevenServer(t *testing.T) {
	t.Parallel()
	p := &pauses{longest: maxPause}
	for n := range 100 * comparePauses {
		p.learn(n%comparePauses < tooMany-1)
	}
	assert.Equal(t, maxPause, p.longest)
	for n := range comparePauses {
		p.learn(n < tooMany)
	}
	assert.Less(t, p.longest, maxPause)
}

// A round trip ends what began with the pause: in it nothing is read either.
func TestThePauseIsLessTheRoundTrip(t *testing.T) {
	t.Parallel()
	p := &pauses{longest: maxPause}
	assert.Equal(t, 18*time.Millisecond, p.length(2*time.Millisecond))
	p.longest = minPause
	assert.Equal(t, minPause, p.length(2*time.Millisecond))
	assert.Equal(t, minPause, p.length(0))
}

// heldUp is a pause of 16 ms in which a server sent its last message after d, and then when it was read.
func heldUp(t *testing.T, d time.Duration) bool {
	t.Helper()
	w, theirs := taken(t)
	makeBusy(t, w, theirs)
	co := coalescerOf(w)
	began := time.Now()
	co.age.note(began.UnixMicro())
	co.age.read = began
	co.age.at(began)
	co.lastPause = 16 * time.Millisecond
	co.age.setMark(began.Add(co.lastPause * 3 / 4))
	co.pause(0)
	assert.Zero(t, co.pauses.count, "it is not known yet")
	assert.Equal(t, 16*time.Millisecond, co.lastPause)
	for sent := time.Duration(0); sent <= d; sent += 50 * time.Microsecond {
		co.age.note(began.Add(sent).UnixMicro())
	}
	co.age.note(began.Add(co.lastPause).UnixMicro())
	co.pause(time.Microsecond)
	assert.Equal(t, 1, co.pauses.count)
	assert.Equal(t, time.Microsecond, co.lastPause)
	return co.pauses.held == 1
}

func TestAPauseThatHoldsTheServerUp(t *testing.T) {
	needsMark(t)
	t.Parallel()
	assert.True(t, heldUp(t, 0))
	assert.True(t, heldUp(t, 9900*time.Microsecond))
	assert.False(t, heldUp(t, 10*time.Millisecond), "not for two milliseconds before the last four")
	assert.False(t, heldUp(t, 13*time.Millisecond))
}

// What is never known, as after a step of the server's clock, does not stop the learning.
func TestAPauseOfWhichNothingIsKnown(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	makeBusy(t, w, theirs)
	co := coalescerOf(w)
	now := time.Now()
	co.age.note(now.UnixMicro())
	co.age.read = now
	co.age.at(now)
	co.pause(time.Microsecond)
	co.age.note(now.Add(-time.Hour).UnixMicro())
	mark := co.age.mark
	require.Positive(t, mark)
	co.pause(2 * time.Microsecond)
	assert.Equal(t, mark, co.age.mark, "it may come with what is read next")
	assert.Equal(t, time.Microsecond, co.lastPause)
	co.age.offset += time.Hour
	co.pause(3 * time.Microsecond)
	assert.Less(t, co.age.mark, mark)
	assert.Equal(t, 3*time.Microsecond, co.lastPause)
	assert.Zero(t, co.pauses.count)
	co.age.note(now.UnixMicro())
	co.pause(0)
	assert.Equal(t, 1, co.pauses.count)
}

// A server is held up when its send buffer is small, and not when it is large.
func TestAServerWithASmallSendBufferIsNotHeldUp(t *testing.T) {
	needsMark(t)
	t.Parallel()
	for buffer, held := range map[int]bool{16 << 10: true, 4 << 20: false} {
		w, theirs := taken(t)
		require.NoError(t, theirs.(*net.TCPConn).SetWriteBuffer(buffer))
		go stream(theirs, 10_000_000, 275, 5*time.Microsecond)
		co := coalescerOf(w)
		await.True(t, func() bool {
			receive(t, w, 10_000)
			return held && co.pauses.longest <= maxPause/2 || !held && co.pauses.count >= 2*comparePauses
		}, "pauses of half the length, or many")
		assert.Equal(t, held, co.pauses.longest < maxPause)
		require.NoError(t, w.conn.Close())
	}
}
