//go:build !linux

package replication

import "syscall"

// setLowWater is for Linux, where readiness honours the mark.
func setLowWater(syscall.RawConn, int) bool { return false }

func unread(uintptr) int { return 0 }
