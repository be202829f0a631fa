package main

import (
	"math"
	"runtime/debug"

	"diehard/streamer/batch"
)

// boundMemory makes the garbage collector keep to what the batches need: two of
// them, and three times the one being inserted (clickhouse-go's columns, its
// buffer, and the compressed buffer). Without a bound the heap would grow to
// twice that before it is collected; with one that is too tight the collector
// would never rest, so there is room for the garbage of an insert, too. GOMEMLIMIT wins.
func boundMemory(l batch.Limits) {
	const base, copies, garbage = 28 << 20, 5, 2
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(int64(base + (copies+garbage)*l.Bytes))
	}
}
