package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestPausesGrowUntilAProgramHasRunForAWhile(t *testing.T) {
	t.Parallel()
	var rest pause
	for _, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 10 * time.Second, 10 * time.Second} {
		assert.Equal(t, want, rest.next(time.Second))
	}
	assert.Equal(t, 500*time.Millisecond, rest.next(2*time.Minute))
}
