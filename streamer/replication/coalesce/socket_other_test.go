//go:build !linux

package coalesce

import "testing"

func markOf(testing.TB, *coalescer) int { return 0 }

func lockOf(testing.TB, *coalescer) int { return 0 }
