package main

import (
	"math"
	"runtime/debug"

	"diehard/streamer/batch"
)

// boundMemory makes the garbage collector keep to what the batches need: two of them, of which one is
// sent as it is, and room for the garbage in between. Without a bound the heap would grow to twice
// its size before it is collected; with one that is too tight the collector would never rest.
// GOMEMLIMIT wins.
func boundMemory(l batch.Limits) {
	const base, batches, garbage = 32 << 20, 2, 2
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(int64(base + (batches+garbage)*l.Bytes))
	}
}
