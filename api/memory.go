package main

import (
	"math"
	"runtime/debug"
)

// boundMemory makes the garbage collector keep to what bodies need: each is there
// twice while PostgreSQL's protocol is written, and leaves garbage. GOMEMLIMIT wins.
func boundMemory(bodies int64) {
	const base, copies = 64 << 20, 4
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(base + copies*bodies)
	}
}
