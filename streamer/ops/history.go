package ops

import (
	"sync"
	"time"

	"diehard/streamer/pipeline"
)

// historyLength is how many points are kept, one a second.
const historyLength = 600

// Point is one second of the charts.
type Point struct {
	Time         int64    `json:"t"`    // milliseconds since 1970
	Rows         int64    `json:"rows"` // that became durable
	Bytes        int64    `json:"bytes"`
	Flushes      int64    `json:"flushes"`
	FlushRows    int64    `json:"flush_rows"`    // mean of a flush
	FlushSeconds float64  `json:"flush_seconds"` // longest
	LatencyP50   float64  `json:"p50"`           // seconds, of the rows that became durable
	LatencyP99   float64  `json:"p99"`
	LagBytes     int64    `json:"lag_bytes"`   // unconfirmed
	LagSeconds   *float64 `json:"lag_seconds"` // flushed; nil: unknown
	Retained     int64    `json:"retained_bytes"`
	Buffered     int64    `json:"buffered_rows"`

	deadLetters int64
}

// history keeps the last minutes. Safe for concurrent use.
type history struct {
	mu     sync.Mutex
	open   Point // flushes since the last point
	points []Point
	rows   int64 // flushed before the open point
	bytes  int64
	before latencyCounts
}

// flushed notes a successful flush.
func (h *history) flushed(f pipeline.Flush) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open.Flushes++
	h.open.FlushRows += int64(f.Rows)
	h.open.deadLetters += int64(f.DeadLetters)
	h.open.FlushSeconds = max(h.open.FlushSeconds, f.Took.Seconds())
}

// tick closes the open point.
func (h *history) tick(now time.Time, p *pipeline.Progress, c latencyCounts, lag Lag) {
	rows, bytes, _ := p.Written()
	h.mu.Lock()
	defer h.mu.Unlock()
	took := c.minus(h.before)
	point := h.open
	point.Time = now.UnixMilli()
	point.Rows, point.Bytes = rows-h.rows, bytes-h.bytes
	if point.Flushes > 0 {
		point.FlushRows /= point.Flushes
	}
	point.LatencyP50, point.LatencyP99 = took.quantile(0.5), took.quantile(0.99)
	point.LagBytes, point.LagSeconds = lag.Confirmed.Bytes, lag.Flushed.Seconds
	point.Retained, point.Buffered = lag.Retained.Bytes, lag.Buffered.Rows
	if len(h.points) == historyLength {
		h.points = append(h.points[:0], h.points[1:]...)
	}
	h.points = append(h.points, point)
	h.open, h.rows, h.bytes, h.before = Point{}, rows, bytes, c
}

// since returns the points after a time in milliseconds since 1970.
func (h *history) since(t int64) []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := len(h.points)
	for i > 0 && h.points[i-1].Time > t {
		i--
	}
	return append([]Point{}, h.points[i:]...)
}

// Throughput is what became durable, a second.
type Throughput struct {
	Rows    float64 `json:"rows_per_second"`
	Bytes   float64 `json:"bytes_per_second"`
	Seconds int     `json:"over_seconds"`
}

// throughput is the mean over the last points, at most n.
func (h *history) throughput(n int) Throughput {
	h.mu.Lock()
	defer h.mu.Unlock()
	n = min(n, len(h.points))
	t := Throughput{Seconds: n}
	for _, p := range h.points[len(h.points)-n:] {
		t.Rows += float64(p.Rows) / float64(n)
		t.Bytes += float64(p.Bytes) / float64(n)
	}
	return t
}

// deadLetters are the dead letters of the points and of the flushes since, and all events with them.
func (h *history) deadLetters() (dead, all int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	dead, all = h.open.deadLetters, h.open.FlushRows
	for _, p := range h.points {
		dead += p.deadLetters
		all += p.Rows
	}
	return dead, all + dead
}
