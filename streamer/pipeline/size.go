package pipeline

import (
	"sync/atomic"

	"diehard/streamer/batch"
)

// batchSize makes batches smaller that exceed a limit of ClickHouse (the memory or the time of
// a query), and larger again when smaller ones are written for a while.
type batchSize struct {
	halvings atomic.Int32 // of the limits; the writer's
	written  int          // without a limit in the way since the last change
}

const (
	maxHalvings = 10
	// growAfter is how many batches must be written before larger ones are tried.
	growAfter = 100
)

// limits are those of the next batch.
func (s *batchSize) limits(l batch.Limits) batch.Limits {
	n := s.halvings.Load()
	return batch.Limits{Rows: max(1, l.Rows>>n), Bytes: max(1, l.Bytes>>n)}
}

// wrote notes a batch that was written, in halves if it was tooMuch.
func (s *batchSize) wrote(tooMuch bool) {
	if tooMuch {
		s.halvings.Store(min(maxHalvings, s.halvings.Load()+1))
		s.written = 0
		return
	}
	if s.written++; s.written >= growAfter && s.halvings.Load() > 0 {
		s.halvings.Add(-1)
		s.written = 0
	}
}
