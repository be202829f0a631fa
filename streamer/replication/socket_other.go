//go:build !linux

package replication

import (
	"syscall"
	"time"
)

// setLowWater is for Linux, where readiness honours the mark.
func setLowWater(syscall.RawConn, int) bool { return false }

func unread(syscall.RawConn) int { return 0 }

func limitWindow(string, string, syscall.RawConn) error { return nil }

func roundTrip(syscall.RawConn) (time.Duration, bool) { return 0, false }

func segments(syscall.RawConn) int { return 0 }
