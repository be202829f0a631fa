// Package await waits in tests for what must happen.
package await

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Limit is how long a test waits before it fails. It is long because it costs
// a test that passes nothing, and a slow machine is not a fault.
const Limit = 2 * time.Minute

const interval = 10 * time.Millisecond

// True waits until condition holds, and fails the test after Limit. Unlike
// require.Eventually it calls condition in the test's own goroutine, so that a
// condition may use require, and calls it at once.
func True(t testing.TB, condition func() bool, message string, args ...any) {
	t.Helper()
	ticker, deadline := time.NewTicker(interval), time.After(Limit)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Logf("goroutines:\n%s", stacks())
			require.Fail(t, "gave up waiting: "+fmt.Sprintf(message, args...))
		}
	}
}

func stacks() []byte {
	buf := make([]byte, 4<<20)
	return buf[:runtime.Stack(buf, true)]
}
