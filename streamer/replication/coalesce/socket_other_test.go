//go:build !linux

package coalesce

import (
	"net"
	"testing"
)

func markOf(testing.TB, *coalescer) int { return 0 }

func windowOf(testing.TB, net.Conn) int { return 0 }

func bufferOf(testing.TB, net.Conn) int { return 0 }
