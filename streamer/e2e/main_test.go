// Package e2e tests the streamer as a whole: real PostgreSQL, real ClickHouse,
// and, where processes matter, the real programs. Nothing here fakes a database;
// faults are brought about with the databases' own means, signals and Toxiproxy.
package e2e

import (
	"flag"
	"os"
	"testing"

	"go.uber.org/goleak"

	"diehard/shared/dev/testenv"
)

// together is how many tests run at a time: they wait more than they compute.
const together = "6"

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", together); err != nil {
		_, _ = os.Stderr.WriteString(err.Error())
	}
	testenv.Main(m, toxiproxyLeaks()...)
}

// toxiproxyLeaks names the goroutines that Toxiproxy leaves behind when a
// connection is cut while data is on its way through a chain of toxics.
func toxiproxyLeaks() []goleak.Option {
	const module = "github.com/Shopify/toxiproxy/v2/"
	return []goleak.Option{
		goleak.IgnoreAnyFunction(module + "stream.(*ChanWriter).Write"),
		goleak.IgnoreAnyFunction(module + "toxics.(*NoopToxic).Pipe"),
		goleak.IgnoreAnyFunction(module + "toxics.(*LatencyToxic).Pipe"),
		goleak.IgnoreAnyFunction(module + "toxics.(*LimitDataToxic).Pipe"),
		goleak.IgnoreAnyFunction(module + "toxics.(*TimeoutToxic).Pipe"),
	}
}
