package pipeline

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"diehard/streamer/batch"
)

func TestBatchesShrinkAtALimitAndGrowAgain(t *testing.T) {
	t.Parallel()
	var s batchSize
	l := batch.Limits{Rows: 1000, Bytes: 1 << 20}
	assert.Equal(t, l, s.limits(l))
	s.wrote(true)
	s.wrote(true)
	assert.Equal(t, batch.Limits{Rows: 250, Bytes: 1 << 18}, s.limits(l))
	for range growAfter {
		s.wrote(false)
	}
	assert.Equal(t, batch.Limits{Rows: 500, Bytes: 1 << 19}, s.limits(l))
	for range 20 {
		s.wrote(true)
	}
	assert.Equal(t, batch.Limits{Rows: 1, Bytes: 1 << 10}, s.limits(l), "a batch has a row")
	for range 20 * growAfter {
		s.wrote(false)
	}
	assert.Equal(t, l, s.limits(l))
}
