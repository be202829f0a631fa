//go:build !linux

package replication

import "testing"

// markOf is for Linux; tests that need it are skipped elsewhere.
func markOf(testing.TB, *coalescer) int { return 0 }
