package sim_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// run plays the world's schedule and returns what went wrong.
func (w *world) run() {
	r := rand.New(rand.NewPCG(w.seed, 4))
	traffic := make(chan struct{})
	go w.traffic(traffic, 300*time.Millisecond)
	names := slices.Sorted(maps.Keys(w.weights))
	pace := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}[r.IntN(3)]
	total := 0
	for _, n := range names {
		total += w.weights[n]
	}
	for range w.actions {
		if len(w.check.failed()) > 0 || w.pg.Err() != nil || w.ch.Err() != nil {
			break
		}
		w.ended()
		w.rest()
		pause(time.Duration(r.ExpFloat64() * float64(pace)))
		w.ended()
		pick := r.IntN(total)
		for _, name := range names {
			if pick -= w.weights[name]; pick < 0 {
				w.act(name, r)
				break
			}
		}
	}
	close(traffic)
	w.heal()
}

// rest lets a time without faults pass, in which less is published.
func (w *world) rest() {
	if w.quiet == 0 {
		return
	}
	w.resting.Store(true)
	pause(w.quiet)
	w.resting.Store(false)
	w.quiet = 0
}

// traffic commits transactions until end is closed.
func (w *world) traffic(end <-chan struct{}, every time.Duration) {
	r := rand.New(rand.NewPCG(w.seed, 5))
	for {
		wait := time.Duration(r.ExpFloat64() * float64(every))
		if w.resting.Load() {
			wait *= 10
		}
		select {
		case <-end:
			return
		case <-time.After(wait):
			w.publish(r)
		}
	}
}

// heal ends all faults and waits until everything has arrived.
func (w *world) heal() {
	w.storm.Store(false)
	w.net.SetDelay(shortDelays)
	w.pg.SetReadOnly(false)
	for _, s := range w.streamers {
		s.host.Thaw()
	}
	for _, h := range w.chHosts {
		h.Thaw()
	}
	w.add("*** all is well again")
	const stallTimeout = 3 * time.Hour
	for began := time.Now(); len(w.check.failed()) == 0 && w.pg.Err() == nil && w.ch.Err() == nil; pause(time.Second) {
		w.ended()
		missing := w.check.missing()
		if len(missing) == 0 {
			return
		}
		if time.Since(began) > stallTimeout {
			w.check.complain("%d events are missing after %s, the first was committed at %s", len(missing), stallTimeout, missing[0].commit.LSN)
			return
		}
	}
}

// simulate runs one seed in a bubble of its own.
func simulate(t *testing.T, seed uint64, p profile) (failed string, sessions int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		pause(time.Until(time.Date(2026, 1, 31, 23, 50, 0, 0, time.UTC))) // the month ends in the middle
		w := newWorld(t, seed, p)
		w.run()
		w.close()
		bad := w.check.failed()
		for _, err := range []error{w.pg.Err(), w.ch.Err()} {
			if err != nil {
				bad = append(bad, err.Error())
			}
		}
		sessions = w.pg.Sessions()
		if len(bad) > 0 {
			failed = fmt.Sprintf("seed %d, %s:\n%s\n\nschedule:\n%s\n\ntrace:\n%s", seed, p.name,
				strings.Join(bad[:min(len(bad), 5)], "\n"), strings.Join(w.schedule, "\n"), w.trace)
		}
	})
	return failed, sessions
}

// What failed once must not fail again.
func TestKeptSeeds(t *testing.T) {
	text, err := os.ReadFile("testdata/kept.txt")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		number, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		seed, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			continue // a comment
		}
		i := slices.IndexFunc(profiles, func(p profile) bool { return p.name == name })
		require.GreaterOrEqual(t, i, 0, line)
		if !profiles[i].holds {
			continue
		}
		if failed, _ := simulate(t, seed, profiles[i]); failed != "" {
			t.Error(failed)
		}
	}
}

func number(t *testing.T, name string, standard uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return standard
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func TestMain(m *testing.M) {
	debug.SetGCPercent(800) // a world is small, and short-lived
	runtime.GOMAXPROCS(1)   // one of its goroutines runs at a time
	testenv.Main(m)
}

// SIM_SEED is the first seed, SIM_RUNS how many, SIM_PROFILE one kind of world, or all.
func TestSim(t *testing.T) {
	first, runs, only := number(t, "SIM_SEED", 1), number(t, "SIM_RUNS", 14), os.Getenv("SIM_PROFILE")
	chosen := slices.DeleteFunc(slices.Clone(profiles), func(p profile) bool { return only == "" && !p.holds || only != "" && only != "all" && p.name != only })
	began, sessions, stop := time.Now(), 0, os.Getenv("SIM_MUTANTS") != ""
	for i := range runs {
		seed := first + i
		p := chosen[int(seed)%len(chosen)]
		failed, n := simulate(t, seed, p)
		sessions += n
		if failed != "" {
			t.Error(failed)
			if stop {
				break
			}
		}
	}
	t.Logf("%d seeds, %d takeovers in %s", runs, sessions, time.Since(began).Round(time.Millisecond))
}
