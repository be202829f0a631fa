package crash_test

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// A fault waits until rows were written since the one before, so that it hits
	// something that works; but not longer than this.
	maxWait = 4 * time.Second
	// Every tenth waits until no more than lagBytes of WAL are to be delivered, but
	// not longer than breath.
	lagBytes, breath = 16 << 20, 15 * time.Second
	// After dryTime without a new row the faults pause. When nothing is written then,
	// for stuckTime and undisturbed, that is a failure by itself.
	dryTime, stuckTime = 15 * time.Second, 2 * time.Minute
)

// fault is one thing that can go wrong. It reports whether it could be done; what
// takes time goes on in the background, under the lock of what it disturbs.
type fault func(x *chaos) bool

var faults = []choice[fault]{
	{20, (*chaos).killHolder},
	{3, (*chaos).killStandby},
	{3, (*chaos).killBoth},
	{6, (*chaos).strandInsert},
	{8, (*chaos).killPostgres},
	{5, (*chaos).killBackend},
	{12, (*chaos).killClickHouse},
	{5, (*chaos).freezeHolder},
	{4, (*chaos).endHolder},
	{3, (*chaos).terminateBackend},
	{2, (*chaos).restartPostgres},
	{3, (*chaos).freezeClickHouse},
	{3, (*chaos).cutPostgres},
	{3, (*chaos).cutClickHouse},
	{3, (*chaos).stallPostgres},
	{4, (*chaos).stallClickHouse},
	{4, (*chaos).loseAnswers},
	{2, (*chaos).slowClickHouse},
}

// chaos makes faults happen.
type chaos struct {
	w         *environment
	streamers *streamers
	rng       *rand.Rand
	ctx       context.Context
	busy      sync.WaitGroup
}

// injectFaults lets faults happen until kills processes were killed.
func injectFaults(ctx context.Context, w *environment, f *streamers, o *observer, kills int) {
	x := &chaos{w: w, streamers: f, rng: random(w.seed, "chaos"), ctx: ctx}
	moved := time.Now()
	for n := 1; w.killed() < kills && len(w.problems()) == 0; n++ {
		before := o.rows(ctx)
		for done := false; !done; {
			done = weighted(x.rng, faults)(x)
		}
		pause(ctx, between(x.rng, 0, 500*time.Millisecond))
		progress := o.awaitProgress(ctx, before, maxWait)
		if !progress && time.Since(moved) > dryTime {
			if progress = o.awaitProgress(ctx, before, stuckTime); !progress {
				w.problem("nothing was written for %s without a fault", stuckTime)
			}
		}
		if progress {
			moved = time.Now()
		}
		if n%10 == 0 {
			o.awaitLag(ctx, lagBytes, breath)
		}
	}
	x.busy.Wait()
}

// during locks something, disturbs it for d in the background, and restores it.
func (x *chaos) during(busy *sync.Mutex, d time.Duration, disturb, restore func() error) bool {
	if !busy.TryLock() {
		return false
	}
	if err := disturb(); err != nil {
		x.w.problem("disturb: %v", err)
		busy.Unlock()
		return true
	}
	x.busy.Go(func() {
		defer busy.Unlock()
		pause(x.ctx, d)
		if err := restore(); err != nil {
			x.w.problem("restore: %v", err)
		}
	})
	return true
}

func (x *chaos) killHolder() bool { return x.kill(x.streamers.holder(), "kill streamer") }

func (x *chaos) killStandby() bool {
	return x.kill(x.streamers.other(x.streamers.holder()), "kill standby")
}

func (x *chaos) killBoth() bool {
	one, other := x.killHolder(), x.killStandby()
	return one || other
}

func (x *chaos) kill(s *streamer, name string) bool {
	if !s.end(name, syscall.SIGKILL) {
		return false
	}
	x.w.did(name, true)
	return true
}

// endHolder stops the streamer in order, as a deployment does.
func (x *chaos) endHolder() bool {
	if !x.streamers.holder().end("SIGTERM", syscall.SIGTERM) {
		return false
	}
	x.w.did("SIGTERM to streamer", false)
	return true
}

func (x *chaos) freezeHolder() bool {
	if !x.streamers.holder().freeze(x.ctx) {
		return false
	}
	x.w.did("freeze streamer", false)
	return true
}

// killPostgres kills the postmaster, and every other time its children at the
// same moment; otherwise they end when they notice.
func (x *chaos) killPostgres() bool {
	all := x.rng.IntN(2) == 0
	return x.during(&x.w.postgresBusy, between(x.rng, 0, time.Second), func() error {
		children := childrenOf(x.w.postgres.PID())
		if err := x.w.postgres.Kill(); err != nil {
			return err
		}
		if all {
			for _, pid := range children {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone
			}
		}
		x.w.did("kill PostgreSQL", true)
		return nil
	}, func() error { return startAgain(x.ctx, x.w.postgres.Start) })
}

func childrenOf(pid int) []int {
	id := strconv.Itoa(pid)
	raw, _ := os.ReadFile("/proc/" + id + "/task/" + id + "/children")
	var children []int
	for _, field := range strings.Fields(string(raw)) {
		if child, err := strconv.Atoi(field); err == nil {
			children = append(children, child)
		}
	}
	return children
}

// killBackend kills the walsender, for which PostgreSQL ends all sessions and
// recovers as after a crash.
func (x *chaos) killBackend() bool {
	if !x.w.postgresBusy.TryLock() {
		return false
	}
	defer x.w.postgresBusy.Unlock()
	pid := 0
	if err := x.query("SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1 AND active", &pid); err != nil {
		return false
	}
	if syscall.Kill(pid, syscall.SIGKILL) != nil {
		return false
	}
	x.w.did("kill walsender", true)
	return true
}

func (x *chaos) terminateBackend() bool {
	if !x.w.postgresBusy.TryLock() {
		return false
	}
	defer x.w.postgresBusy.Unlock()
	var ended bool
	err := x.query("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", &ended)
	if err != nil || !ended {
		return false
	}
	x.w.did("terminate walsender", false)
	return true
}

// query reads one value about the slot.
func (x *chaos) query(sql string, value any) error {
	ctx, cancel := context.WithTimeout(x.ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, x.w.url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return conn.QueryRow(ctx, sql, slot).Scan(value)
}

// restartPostgres stops PostgreSQL in order: fast or immediate.
func (x *chaos) restartPostgres() bool {
	stop, name := x.w.postgres.Stop, "restart PostgreSQL, fast"
	if x.rng.IntN(2) == 0 {
		stop, name = x.w.postgres.StopImmediate, "restart PostgreSQL, immediate"
	}
	return x.during(&x.w.postgresBusy, between(x.rng, 0, 500*time.Millisecond), func() error {
		x.w.did(name, false)
		return stop(x.ctx)
	}, func() error { return startAgain(x.ctx, x.w.postgres.Start) })
}

func (x *chaos) killClickHouse() bool {
	return x.during(&x.w.clickhouseBusy, between(x.rng, 0, time.Second), func() error {
		x.w.did("kill ClickHouse", true)
		return x.w.clickhouse.Kill()
	}, func() error { return startAgain(x.ctx, x.w.clickhouse.Start) })
}

func (x *chaos) freezeClickHouse() bool {
	return x.during(&x.w.clickhouseBusy, between(x.rng, 200*time.Millisecond, 3*time.Second), func() error {
		x.w.did("freeze ClickHouse", false)
		return x.w.clickhouse.Pause()
	}, x.w.clickhouse.Resume)
}

func (x *chaos) cutPostgres() bool   { return x.cut(x.w.network.postgres, "PostgreSQL") }
func (x *chaos) cutClickHouse() bool { return x.cut(x.w.network.clickhouse, "ClickHouse") }

// cut resets the connections and refuses new ones for a moment.
func (x *chaos) cut(c *proxy, name string) bool {
	return x.during(&c.busy, between(x.rng, 0, time.Second), func() error {
		x.w.did("cut off "+name, false)
		c.refuse(true)
		return nil
	}, func() error {
		c.refuse(false)
		return nil
	})
}

func (x *chaos) stallPostgres() bool   { return x.stall(x.w.network.postgres, "PostgreSQL") }
func (x *chaos) stallClickHouse() bool { return x.stall(x.w.network.clickhouse, "ClickHouse") }

// stall makes connections half open: all seems well and nothing arrives. In the
// end everything arrives late, or nothing ever does.
func (x *chaos) stall(c *proxy, name string) bool {
	which := weighted(x.rng, []choice[[]direction]{
		{2, []direction{toServer, toStreamer}}, {1, []direction{toServer}}, {1, []direction{toStreamer}},
	})
	late, every := x.rng.IntN(2) == 0, x.rng.IntN(2) == 0
	return x.during(&c.busy, between(x.rng, 100*time.Millisecond, 4*time.Second), func() error {
		x.w.did(map[bool]string{true: "delay ", false: "half-open "}[late]+name, false)
		c.keepBack(every, which...)
		return nil
	}, func() error {
		if !late {
			c.cut()
		}
		c.release()
		return nil
	})
}

// loseAnswers leaves the streamer in doubt about inserts that are written.
func (x *chaos) loseAnswers() bool {
	c := x.w.network.clickhouse
	return x.during(&c.busy, between(x.rng, 200*time.Millisecond, time.Second), func() error {
		x.w.did("lose ClickHouse's answers", false)
		c.keepBack(true, toStreamer)
		return nil
	}, func() error {
		c.cut()
		c.release()
		return nil
	})
}

// strandInsert kills the streamer while what it sent to ClickHouse is still on its
// way, to arrive when another one has taken over.
func (x *chaos) strandInsert() bool {
	c := x.w.network.clickhouse
	return x.during(&c.busy, between(x.rng, 2*time.Second, 4*time.Second), func() error {
		c.keepBack(false, toServer)
		pause(x.ctx, between(x.rng, 0, 300*time.Millisecond))
		x.kill(x.streamers.holder(), "kill streamer, its insert comes late")
		return nil
	}, func() error {
		c.release()
		return nil
	})
}

// slowClickHouse lets a try of an insert take seconds.
func (x *chaos) slowClickHouse() bool {
	c := x.w.network.clickhouse
	return x.during(&c.busy, between(x.rng, time.Second, 3*time.Second), func() error {
		x.w.did("slow ClickHouse", false)
		c.slow(between(x.rng, 50*time.Millisecond, 300*time.Millisecond))
		return nil
	}, func() error {
		c.slow(0)
		return nil
	})
}
