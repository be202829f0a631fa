package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestRestartDelayGrowsUntilAProgramIsStable(t *testing.T) {
	t.Parallel()
	var delay restartDelay
	for _, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 10 * time.Second, 10 * time.Second} {
		assert.Equal(t, want, delay.next(time.Second))
	}
	assert.Equal(t, 500*time.Millisecond, delay.next(2*time.Minute))
}
