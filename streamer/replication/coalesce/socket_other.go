//go:build !linux

package coalesce

import (
	"syscall"
	"time"
)

// setLowWater is for Linux, where readiness honours the mark. Without it
// connections are read as they come, and the others have nothing to do.
func setLowWater(syscall.RawConn, int) bool { return false }

func limitSegment(string, string, syscall.RawConn) error { return nil }

func setWindow(syscall.RawConn, int, bool) {}

func releaseWindow(syscall.RawConn) {}

func unread(syscall.RawConn) int { return 0 }

func acknowledge(syscall.RawConn) {}

func look(syscall.RawConn) (path, traffic) { return path{}, traffic{} }

func sleep(time.Duration) {}
