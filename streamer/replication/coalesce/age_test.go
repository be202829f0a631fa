package coalesce

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// aged is the age of a message that was sent at a server's clock, and read at ours.
func aged(a *age, sent, read time.Time) time.Duration {
	a.sent, a.read = sent.UnixMicro(), read
	return a.at(read)
}

func TestTheAgeOfAMessage(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour} { // the server's clock
		var a age
		now := time.UnixMicro(1_700_000_000_000_000)
		assert.Equal(t, unknownAge, a.at(now), "not dated")
		server := now.Add(ahead)
		assert.Zero(t, aged(&a, server, now.Add(3*time.Millisecond)), "the first is the youngest")
		assert.Equal(t, 7*time.Millisecond, aged(&a, server.Add(-7*time.Millisecond), now.Add(3*time.Millisecond)))
		assert.Equal(t, 12*time.Millisecond, a.at(now.Add(8*time.Millisecond)).Round(time.Millisecond), "read 5 ms ago")
		assert.Equal(t, time.Duration(0), aged(&a, server.Add(6*time.Millisecond), now.Add(8*time.Millisecond)), "younger")
		assert.Equal(t, time.Millisecond, aged(&a, server.Add(5*time.Millisecond), now.Add(8*time.Millisecond)))
	}
}

// An age that is taken for too high shows, and one that is too low does not: so the first is looked for.
func TestTheAgeRisesUntilNothingWaits(t *testing.T) {
	t.Parallel()
	var a age
	now := time.UnixMicro(1_700_000_000_000_000)
	assert.Zero(t, aged(&a, now, now))
	now = now.Add(time.Second)
	assert.Equal(t, time.Millisecond, aged(&a, now, now), "a thousandth of a second")
	a.nothingWaits(now)
	assert.Equal(t, 500*time.Microsecond, aged(&a, now, now))
	assert.Zero(t, aged(&a, now, now.Add(-time.Minute)), "our clock went back")
	a.nothingWaits(now.Add(-time.Minute))
	assert.Zero(t, aged(&a, now, now.Add(-time.Minute)), "nothing to learn")
	for range 30 {
		a.read = now.Add(time.Minute)
		a.nothingWaits(now)
	}
	assert.Less(t, aged(&a, now, now.Add(time.Minute)), time.Second, "our clock went on")
	var undated age
	undated.nothingWaits(now)
	assert.Equal(t, unknownAge, undated.at(now))
}

func TestWhatWasSentBeforeAMark(t *testing.T) {
	t.Parallel()
	now := time.UnixMicro(1_700_000_000_000_000)
	server := now.Add(time.Hour)
	var a age
	assert.True(t, a.passed(), "nothing was asked")
	a.setMark(now)
	assert.True(t, a.passed(), "the clocks have not been compared")
	aged(&a, server, now)
	a.setMark(now.Add(10 * time.Millisecond))
	for _, ms := range []int{1, 2, 4} {
		a.note(server.Add(time.Duration(ms) * time.Millisecond).UnixMicro())
		assert.False(t, a.passed())
	}
	a.note(server.Add(10 * time.Millisecond).UnixMicro())
	assert.True(t, a.passed())
	assert.Equal(t, 6*time.Millisecond, a.before)
	a.note(server.Add(11 * time.Millisecond).UnixMicro())
	assert.Equal(t, 6*time.Millisecond, a.before)
}
