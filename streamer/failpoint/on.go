//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// DIEHARD_FAILPOINT is name[:n[:stop]]: the nth time it gets there, the process
// kills itself, or freezes until it receives SIGCONT.
var (
	name, after, signal = parse(os.Getenv("DIEHARD_FAILPOINT"))
	hits                atomic.Int64
)

func parse(v string) (string, int64, syscall.Signal) {
	parts := strings.Split(v, ":")
	n, signal := int64(1), syscall.SIGKILL
	if len(parts) > 1 {
		var err error
		if n, err = strconv.ParseInt(parts[1], 10, 64); err != nil {
			panic(fmt.Sprintf("DIEHARD_FAILPOINT: %v", err))
		}
	}
	if len(parts) > 2 && parts[2] == "stop" {
		signal = syscall.SIGSTOP
	}
	return parts[0], n, signal
}

// Hit kills or freezes the process at the chosen place.
func Hit(place string) {
	if place != name || hits.Add(1) != after {
		return
	}
	_ = syscall.Kill(os.Getpid(), signal)
	<-time.After(50 * time.Millisecond) // the signal is on its way
}
