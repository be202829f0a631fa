package crash_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"diehard/shared/clickhouse"
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
	{3, (*chaos).lagBehind},
	{4, (*chaos).deleteFleeting},
}

// chaos makes faults happen.
type chaos struct {
	w         *environment
	streamers *streamers
	observer  *observer
	rng       *rand.Rand
	ctx       context.Context
	busy      sync.WaitGroup

	failoverDue, foreignDue int      // at so many kills
	failovers               []int    // the kinds to come
	standby                 *standby // to be promoted
}

// injectFaults lets faults happen until kills processes were killed.
func injectFaults(ctx context.Context, w *environment, f *streamers, o *observer, kills int) {
	x := &chaos{w: w, streamers: f, observer: o, rng: random(w.seed, "chaos"), ctx: ctx}
	x.failovers = x.rng.Perm(kindsOfFailover)
	x.failoverDue, x.foreignDue = firstFailover+x.rng.IntN(firstSpread), firstForeign+x.rng.IntN(firstSpread)
	moved := time.Now()
	for n := 1; w.killed() < kills && len(w.problems()) == 0; n++ {
		w.upheavals.awaitCalm()
		before := o.rows(ctx)
		for done := x.upheave(); !done; {
			done = weighted(x.rng, faults)(x)
		}
		pause(ctx, between(x.rng, 0, 500*time.Millisecond))
		if x.standby != nil && x.standby.cutOff { // nothing can be written
			moved = time.Now()
			continue
		}
		progress := o.awaitProgress(ctx, before, maxWait) || x.revive()
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
	if x.standby != nil {
		x.promoteCopy()
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
	if err := x.w.ask(x.ctx, "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1 AND active", &pid, x.w.slot()); err != nil {
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
	err := x.w.ask(x.ctx, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", &ended, x.w.slot())
	if err != nil || !ended {
		return false
	}
	x.w.did("terminate walsender", false)
	return true
}

// revive starts a PostgreSQL that has given up its recovery from a crash, which the next try may
// well manage. It reports whether it did.
func (x *chaos) revive() bool {
	if !x.w.postgresBusy.TryLock() {
		return false
	}
	defer x.w.postgresBusy.Unlock()
	if x.w.postgres.Alive() {
		return false
	}
	x.w.did("PostgreSQL gives up its recovery", false)
	if err := startAgain(x.ctx, x.w.postgres.Start); err != nil {
		x.w.problem("start PostgreSQL: %v", err)
	}
	return true
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
	}, func() error {
		err := startAgain(x.ctx, x.w.clickhouse.Start)
		if err == nil {
			err = x.w.noteFleeting(x.ctx)
		}
		return err
	})
}

func (x *chaos) freezeClickHouse() bool {
	return x.during(&x.w.clickhouseBusy, between(x.rng, 200*time.Millisecond, 3*time.Second), func() error {
		x.w.did("freeze ClickHouse", false)
		return x.w.clickhouse.Pause()
	}, x.w.clickhouse.Resume)
}

// lagBehind lets a listener see nothing new for a while, as a replica that is behind does.
func (x *chaos) lagBehind() bool {
	listeners := x.w.clickhouse.ReplicaConfigs("default")[1:]
	cfg := listeners[x.rng.IntN(len(listeners))]
	tell := func(statement string) error {
		conn, err := clickhouse.Open(x.ctx, cfg)
		if err == nil {
			err = errors.Join(conn.Exec(x.ctx, statement), conn.Close())
		}
		return err
	}
	return x.during(&x.w.clickhouseBusy, between(x.rng, time.Second, 4*time.Second), func() error {
		x.w.did("a listener of ClickHouse lags", false)
		return tell("SYSTEM STOP FETCHES")
	}, func() error { return tell("SYSTEM START FETCHES") })
}
