package ops

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// latencyBounds are the upper bounds of the latency histogram's buckets, in
// microseconds, from a lone event to a long outage. They are narrow where the
// latencies of a healthy stream lie, because a quantile is no better than its bucket.
var latencyBounds = [...]int64{
	1e3, 2e3, 3e3, 5e3, 75e2, 1e4, 15e3, 2e4, 3e4, 5e4, 75e3, 1e5, 15e4, 2e5, 25e4, 3e5, 4e5, 5e5, 75e4,
	1e6, 15e5, 2e6, 3e6, 5e6, 1e7, 2e7, 6e7, 3e8, 9e8, 36e8, 216e8, 864e8,
}

const latencyBuckets = len(latencyBounds) + 1

// latencyCounts is a histogram of times in microseconds.
type latencyCounts struct {
	buckets [latencyBuckets]uint64
	count   uint64
	sum     int64
}

// latency is the time from commit to durable, of every row. A batch is counted
// in one pass, because a call a row would cost more than decoding the row.
type latency struct {
	desc *prometheus.Desc

	mu    sync.Mutex
	total latencyCounts
}

func newLatency() *latency {
	return &latency{desc: prometheus.NewDesc("diehard_streamer_event_latency_seconds",
		"Time from the commit in PostgreSQL until the row is durable in ClickHouse, of every row, by PostgreSQL's clock.", nil, nil)}
}

// observe counts rows that were committed at the given times (microseconds
// since 1970) and were durable at now, both by the same clock.
func (l *latency) observe(commitTimes []int64, now time.Time) {
	var c latencyCounts
	c.add(commitTimes, now.UnixMicro())
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, n := range c.buckets {
		l.total.buckets[i] += n
	}
	l.total.count += c.count
	l.total.sum += c.sum
}

// add looks a bucket up only where a row leaves that of the row before: rows
// come in commit order, and most batches lie in one or two buckets.
func (c *latencyCounts) add(commitTimes []int64, now int64) {
	bucket, low, high := 0, int64(-1), int64(-1) // nothing lies in (low, high]
	run := uint64(0)
	for _, committed := range commitTimes {
		took := max(0, now-committed) // clocks are compared to within the network's delay
		c.sum += took
		if took > low && took <= high {
			run++
			continue
		}
		c.buckets[bucket] += run
		bucket, low, high = latencyBucket(took)
		run = 1
	}
	c.buckets[bucket] += run
	c.count += uint64(len(commitTimes))
}

// latencyBucket returns the bucket of a time, and what it holds: (low, high].
func latencyBucket(took int64) (bucket int, low, high int64) {
	bucket, _ = slices.BinarySearch(latencyBounds[:], took)
	low, high = -1, math.MaxInt64
	if bucket > 0 {
		low = latencyBounds[bucket-1]
	}
	if bucket < len(latencyBounds) {
		high = latencyBounds[bucket]
	}
	return bucket, low, high
}

// snapshot returns all that was counted so far.
func (l *latency) snapshot() latencyCounts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// minus returns what was counted since an earlier snapshot.
func (c latencyCounts) minus(before latencyCounts) latencyCounts {
	for i := range c.buckets {
		c.buckets[i] -= before.buckets[i]
	}
	c.count -= before.count
	c.sum -= before.sum
	return c
}

// quantile estimates the q-quantile, in seconds, by interpolation within its
// bucket; 0 without rows.
func (c latencyCounts) quantile(q float64) float64 {
	rank := q * float64(c.count)
	below := 0.0
	for i, n := range c.buckets {
		if n == 0 || below+float64(n) < rank {
			below += float64(n)
			continue
		}
		low, high := int64(0), latencyBounds[len(latencyBounds)-1]
		if i > 0 {
			low = latencyBounds[i-1]
		}
		if i < len(latencyBounds) {
			high = latencyBounds[i]
		}
		return (float64(low) + (rank-below)/float64(n)*float64(high-low)) / 1e6
	}
	return 0
}

// Describe implements prometheus.Collector.
func (l *latency) Describe(ch chan<- *prometheus.Desc) { ch <- l.desc }

// Collect implements prometheus.Collector.
func (l *latency) Collect(ch chan<- prometheus.Metric) {
	c := l.snapshot()
	cumulative := make(map[float64]uint64, len(latencyBounds))
	below := uint64(0)
	for i, bound := range latencyBounds {
		below += c.buckets[i]
		cumulative[float64(bound)/1e6] = below
	}
	ch <- prometheus.MustNewConstHistogram(l.desc, c.count, float64(c.sum)/1e6, cumulative)
}
