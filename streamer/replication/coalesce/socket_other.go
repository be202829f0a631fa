//go:build !linux

package coalesce

import (
	"syscall"
	"time"
)

// setLowWater is for Linux, where readiness honours the mark. Without it
// connections are read as they come, and the others have nothing to do.
func setLowWater(syscall.RawConn, int) bool { return false }

func clampWindow(string, string, syscall.RawConn) error { return nil }

func roundTrip(syscall.RawConn) (time.Duration, bool) { return 0, true }

func unread(syscall.RawConn) int { return 0 }

func segments(syscall.RawConn) int { return 0 }

func coalescedSegment(syscall.RawConn) int { return 0 }

func awaitReadable(syscall.RawConn, time.Duration) {}
