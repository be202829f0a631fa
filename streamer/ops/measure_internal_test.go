package ops

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/replication"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestTimelineKnowsWhenTheWALWasWhere(t *testing.T) {
	var line timeline
	_, ok := line.reached(100)
	assert.False(t, ok)
	for _, m := range []struct {
		lsn     pglogrepl.LSN
		seconds int
	}{{100, 0}, {200, 10}, {200, 11}, {200, 30}, {300, 40}, {250, 50}} {
		line.add(m.lsn, start.Add(time.Duration(m.seconds)*time.Second))
	}
	for lsn, want := range map[pglogrepl.LSN]float64{
		100: 0, 150: 5,
		200: 30, // the WAL stood still until then
		250: 35, 300: 40, 400: 40,
	} {
		at, ok := line.reached(lsn)
		require.True(t, ok)
		assert.InDelta(t, want, at.Sub(start).Seconds(), 0.001, "%d", lsn)
	}
	_, ok = line.reached(99)
	assert.False(t, ok, "before the first mark")
}

func TestTimelineIsBounded(t *testing.T) {
	var line timeline
	for i := range 3 * maxMarks {
		line.add(pglogrepl.LSN(i), start.Add(time.Duration(i)*time.Second))
	}
	assert.LessOrEqual(t, len(line.marks), maxMarks)
	at, ok := line.reached(3*maxMarks - 100)
	assert.True(t, ok)
	assert.Equal(t, start.Add((3*maxMarks-100)*time.Second), at)
}

func TestRunwayEndsAtThePresentGrowth(t *testing.T) {
	safe := int64(600_000)
	slot := &Slot{Slot: replication.Slot{SafeBytes: &safe}}
	var g growth
	assert.Nil(t, walHeadroom(slot, g.rate(false)).Seconds, "one look is no rate")
	for i := range 120 { // the first minute is forgotten
		bytes := int64(1000 * max(0, i-59))
		g.add(start.Add(time.Duration(i)*time.Second), bytes)
	}
	assert.InDelta(t, 1000, g.rate(true).bytes, 1)
	assert.InDelta(t, 600, *walHeadroom(slot, g.rate(true)).Seconds, 1)
	assert.Nil(t, walHeadroom(slot, rate{bytes: -5, known: true}).Seconds, "what is kept shrinks")
	assert.False(t, walHeadroom(&Slot{}, g.rate(true)).Limited)
	safe = -1
	assert.Zero(t, *walHeadroom(slot, rate{}).Seconds, "the next checkpoint may end it")
}

// PostgreSQL moves the restart_lsn of a slot that keeps up in steps.
func TestWALThatComesAndGoesDoesNotGrow(t *testing.T) {
	var g growth
	for i := range 60 {
		g.add(start.Add(time.Duration(i)*time.Second), int64(i%15)*4_000_000)
		if r := g.rate(true); r.known {
			assert.InDelta(t, 0, r.bytes, 0.1, "after %d seconds", i)
		} else {
			assert.Less(t, i, 45)
		}
	}
	assert.True(t, g.rate(true).known)
}

func TestGrowthOfAnInactiveSlotIsKnownAtOnce(t *testing.T) {
	var g growth
	g.add(start, 5_000_000)
	g.add(start.Add(time.Second), 6_000_000)
	assert.Equal(t, rate{bytes: 1_000_000, known: true}, g.rate(false))
	assert.False(t, g.rate(true).known, "it may be one of the steps of a slot that is read")
}

func TestLatencyCountsEveryRowInItsBucket(t *testing.T) {
	now := start.UnixMicro()
	times := make([]int64, 10_000)
	naive := latencyCounts{}
	for i := range times {
		took := int64(1) << rand.IntN(38)
		times[i] = now - took
		bucket := 0
		for bucket < len(latencyBounds) && took > latencyBounds[bucket] {
			bucket++
		}
		naive.buckets[bucket]++
		naive.sum += took
	}
	naive.count = uint64(len(times))
	l := newLatency()
	l.observe(times, start)
	assert.Equal(t, naive, l.snapshot())

	l.observe([]int64{now + 500}, start)
	assert.Equal(t, naive.buckets[0]+1, l.snapshot().buckets[0], "a commit in the future took no time")
}

func TestQuantilesLieInTheirBucket(t *testing.T) {
	var c latencyCounts
	assert.Zero(t, c.quantile(0.99))
	now := start.UnixMicro()
	for range 98 {
		c.add([]int64{now - 1500}, now)
	}
	c.add([]int64{now - 700_000, now - 700_000}, now)
	assert.InDelta(t, 0.0015, c.quantile(0.5), 0.0005)
	assert.InDelta(t, 0.75, c.quantile(0.99), 0.25)
	before := c
	c.add([]int64{now - 30_000}, now)
	assert.InDelta(t, 0.035, c.minus(before).quantile(0.5), 0.015)
}

func BenchmarkLatency(b *testing.B) {
	const rows = 50_000
	times := make([]int64, rows)
	for i := range times {
		times[i] = start.UnixMicro() + int64(i)*20
	}
	now := start.Add(1200 * time.Millisecond)
	l := newLatency()
	for b.Loop() {
		l.observe(times, now)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/rows, "ns/row")
}

func TestDaysAheadEndAtTheFirstGap(t *testing.T) {
	var list []Partition
	today := start.Truncate(24 * time.Hour)
	assert.Equal(t, -1, daysAhead(list, start))
	for _, day := range []int{-1, 0, 1, 2, 4} {
		list = append(list, Partition{StartsAt: today.AddDate(0, 0, day)})
	}
	assert.Equal(t, 2, daysAhead(list, start))
}
