package coalesce

import (
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

func TestTheLowWaterMarkFollowsTheStream(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	write(t, theirs, message('d', nil))
	receive(t, w, 1)
	co := coalescerOf(w)
	assert.Equal(t, 1, markOf(t, co))

	start := time.Now()
	reads := func(interval time.Duration, bytes int) {
		for i := range busySample {
			co.observe(start.Add(time.Duration(i)*interval), bytes)
		}
	}
	reads(time.Millisecond, 400) // 1,000 events per second
	assert.False(t, co.busy)
	reads(busyInterval/2, 400)
	assert.True(t, co.busy)
	assert.Equal(t, co.window, markOf(t, co))
	co.quiet()
	assert.Equal(t, 1, markOf(t, co))
	reads(time.Millisecond, 4*busyRate/1000) // few reads that bring much
	assert.True(t, co.busy)
}

// A message is read when the read ends: it may have waited for the message.
func TestWhenAMessageWasRead(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	began := time.Now()
	timer := time.AfterFunc(20*time.Millisecond, func() { _, _ = theirs.Write(walData(100)) })
	defer timer.Stop()
	receive(t, w, 1)
	assert.GreaterOrEqual(t, coalescerOf(w).age.read.Sub(began), 20*time.Millisecond)
}

// The window of a far server goes to what it sends, or up to half of the way back to what came in
// whole segments; and no further before the server knows of it.
func TestTheWindowOfAFarServer(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, _ := taken(t)
	co := coalescerOf(w)
	co.window, co.step = largeWindow, largeWindow/2
	at := func(bytes int) traffic { return traffic{bytes: bytes} }
	co.narrow(200<<10, at(0))
	assert.Equal(t, 200<<10, co.window)
	assert.Zero(t, co.step)
	co.narrow(100<<10, at(largeWindow-1))
	assert.Equal(t, 200<<10, co.window, "sent before it knew")
	co.best = 300 << 10
	co.narrow(20<<10, at(largeWindow))
	assert.Equal(t, 160<<10, co.window)
	assert.Equal(t, 225<<10, co.best)
	co.narrow(900<<10, at(2*largeWindow))
	assert.Equal(t, 140<<10, co.window, "an eighth less at least")
	co.best = 0
	co.narrow(0, at(3*largeWindow))
	assert.Equal(t, smallWindow, co.window)
}

// The socket of a stream that thins out is read empty, and after some pauses read at once.
func TestAStreamThatThinsOut(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	co := coalescerOf(w)
	go stream(theirs, 10_000, 395, 0)
	receive(t, w, 10_000)
	makeBusy(t, w, theirs)
	n := 0
	for ; co.busy; n++ {
		require.Less(t, n, 1000, "messages one by one, and the stream is still busy")
		write(t, theirs, message('d', []byte("one")))
		receive(t, w, 1)
		assert.Zero(t, unread(co.raw))
	}
	assert.Equal(t, 1, markOf(t, co))
}

// The receiver's buffer stays the kernel's. One of a fixed size overruns when the window
// fills with small segments: then acknowledgements are ignored with what they came on, so that
// a session whose reader waits for ClickHouse dies.
func TestAReaderThatDoesNotReadIsStillHeard(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	co := coalescerOf(w)
	go stream(theirs, 1_000_000, 195, 0)
	makeBusy(t, w, theirs)
	receive(t, w, 50_000)
	co.open()
	assert.Zero(t, lockOf(t, co), "the buffer is locked")
	for range 20 { // nothing is read between them
		write(t, w.conn, []byte("status"))
		require.NoError(t, theirs.SetReadDeadline(soon()))
		n, err := theirs.Read(make([]byte, 6))
		require.NoError(t, err)
		require.Equal(t, 6, n)
	}
}

// stream sends n messages of size bytes, each with a system call of its own as the walsender does, and
// computes between them.
func stream(to net.Conn, n, size int, computing time.Duration) {
	m := walData(size)
	for range n {
		now := time.Now()
		for until := now.Add(computing); now.Before(until); now = time.Now() {
			runtime.KeepAlive(m)
		}
		date(m, now)
		if _, err := to.Write(m); err != nil {
			return
		}
	}
}

func receive(t testing.TB, w *reader, n int) {
	t.Helper()
	for range n {
		_, _, err := w.next(soon())
		require.NoError(t, err)
	}
}

// A stream thins out when nothing came, or four times in a row less than a megabyte per second.
func TestWhenAStreamThinsOut(t *testing.T) {
	needsMark(t)
	t.Parallel()
	w, theirs := taken(t)
	makeBusy(t, w, theirs)
	co := coalescerOf(w)
	assert.True(t, co.thins(traffic{}, time.Millisecond), "nothing came")
	write(t, theirs, []byte{1})
	await.True(t, func() bool { return unread(co.raw) == 1 }, "what was sent")
	co.thin = 0
	assert.False(t, co.thins(traffic{}, time.Millisecond), "nothing came, but there is a rest")
	enough := traffic{bytes: quietRate / 100}
	little := traffic{bytes: quietRate/100 - 1}
	for range quietAfter - 2 {
		assert.False(t, co.thins(little, 10*time.Millisecond))
	}
	assert.False(t, co.thins(enough, 10*time.Millisecond))
	for range quietAfter - 1 {
		assert.False(t, co.thins(little, 10*time.Millisecond))
	}
	assert.True(t, co.thins(little, 10*time.Millisecond))
}
