// Package crash proves that no event is lost and none comes twice, whatever dies.
//
// Eight producers write to a real PostgreSQL while a seeded schedule kills,
// freezes and cuts off everything on the way to a real ClickHouse: two streamers
// (one is the hot standby), both servers, and the network between them. Long runs also
// promote copies of PostgreSQL that lack its last events, and let something else read
// the slot; an operator does what a streamer asks for that refuses to run. At the end
// the two databases are compared row by row, with plain SELECTs.
//
//	CRASH_KILLS  how many processes to kill, 12 unless set
//	CRASH_SEED   the seed of the schedule, random unless set
//	CRASH_BAD    how many of a hundred events ClickHouse refuses, beside a few
//	CRASH_RATE   how many events the producers aim at in a second, 2100 unless set
//
// A failure keeps data and logs in .dev/crash and says where.
package crash_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

const (
	defaultKills = 12
	// settleTime bounds the wait for another row once nothing disturbs any more.
	settleTime = 2 * time.Minute
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestCrash(t *testing.T) {
	seed := number(t, "CRASH_SEED", rand.Uint64N(1_000_000))
	kills := int(number(t, "CRASH_KILLS", defaultKills))
	bad := int(number(t, "CRASH_BAD", 0))
	rate := max(1, int(number(t, "CRASH_RATE", defaultRate)))
	t.Logf("CRASH_SEED=%d CRASH_KILLS=%d CRASH_BAD=%d CRASH_RATE=%d", seed, kills, bad, rate)

	began := time.Now()
	w := newEnvironment(t, seed, bad, rate)
	streamers := startStreamers(t, w)
	operator := startOperator(t, w, streamers)
	observer := startObserver(t, w)
	awaitReader(t, w)
	running := startProducers(t, w)
	injectFaults(t.Context(), w, streamers, observer, kills)
	disturbed := time.Since(began)

	streamers.endFaults()
	running.stop()
	w.repair(t.Context())
	observer.awaitEverything(t.Context(), settleTime)
	operator.finish()
	observer.awaitEverything(t.Context(), settleTime)
	streamers.stop()
	observer.stop()
	result := verify(t.Context(), w, running, observer)

	report := w.report(result, running, streamers, observer, disturbed, time.Since(began))
	w.keep("report.txt", report)
	t.Log("\n" + report)
	for _, problem := range w.problems() {
		t.Error(problem)
	}
}

// number reads an environment variable.
func number(t *testing.T, name string, fallback uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return fallback
	}
	n, err := strconv.ParseUint(text, 10, 64)
	require.NoError(t, err, name)
	return n
}

// random returns the generator of one actor, so that what one does with chance
// does not change what another does.
func random(seed uint64, actor string) *rand.Rand {
	var mixed uint64 = 14695981039346656037 // FNV-1a
	for _, c := range []byte(actor) {
		mixed = (mixed ^ uint64(c)) * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, mixed))
}

// between returns a duration from low up to high.
func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)))
}

// pause waits for d, or less if ctx ends; it reports whether it did wait.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// weighted picks one of the choices by their weights.
func weighted[T any](r *rand.Rand, choices []choice[T]) T {
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	n := r.IntN(total)
	for _, c := range choices {
		if n < c.weight {
			return c.value
		}
		n -= c.weight
	}
	panic(fmt.Sprintf("no choice among %d", len(choices)))
}

type choice[T any] struct {
	weight int
	value  T
}
