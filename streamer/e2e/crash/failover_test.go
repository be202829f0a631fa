package crash_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pglogrepl"
)

const (
	// An upheaval comes after so many kills, and the first ones of each kind.
	rarest, oftenest            = 40, 25
	firstFailover, firstForeign = 14, 24
	firstSpread                 = 10
)

// The kinds of failovers, which come in turn.
const (
	nothingLost = iota
	lostUnread  // no streamer has read what the copy lacks
	lostRead
	kindsOfFailover
)

// standby is a copy of PostgreSQL that will be promoted: it lacks what is committed from now on.
type standby struct {
	from   time.Time
	wait   int  // faults until the failover
	cutOff bool // no streamer sees what it lacks
}

// upheave lets what is due happen; it reports whether something did.
func (x *chaos) upheave() bool {
	if x.standby != nil {
		x.standby.wait--
		if x.standby.wait > 0 {
			return false
		}
		x.promoteCopy()
		return true
	}
	kills := x.w.killed()
	if kills < x.failoverDue && kills < x.foreignDue || !x.w.settled(x.ctx) {
		return false
	}
	if kills >= x.foreignDue {
		if x.foreignReader() {
			x.foreignDue = kills + oftenest + x.rng.IntN(rarest-oftenest)
			return true
		}
		return false
	}
	if x.prepareFailover() {
		x.failoverDue = kills + oftenest + x.rng.IntN(rarest-oftenest)
		return true
	}
	return false
}

// prepareFailover copies PostgreSQL, or fails over at once to a standby that has everything. No row
// leaves event_log from before until a streamer goes on: the last ones show where it was.
func (x *chaos) prepareFailover() bool {
	if !x.w.upheavals.deletes.TryLock() {
		return false
	}
	before := x.observer.rows(x.ctx)
	if !x.observer.awaitProgress(x.ctx, before, maxWait) {
		x.w.upheavals.deletes.Unlock()
		return false
	}
	x.w.postgresBusy.Lock()
	defer x.w.postgresBusy.Unlock()
	kind := x.failovers[0]
	x.failovers = append(x.failovers[1:], kind)
	if kind == nothingLost {
		x.failOver("failover, nothing lost", func(string) error { return nil })
		return true
	}
	s := &standby{from: time.Now(), wait: 1 + x.rng.IntN(4), cutOff: kind == lostUnread}
	if s.cutOff {
		x.w.network.postgres.busy.Lock() // promoteCopy releases it
		x.w.network.postgres.proxies.refuse(true)
	}
	x.standby = s
	dir, err := x.w.postgresDir()
	if err == nil {
		err = x.w.postgres.StopImmediate(x.ctx)
	}
	if err == nil {
		err = run("cp", "-a", "--reflink=auto", dir, dir+"-copy")
	}
	if err = errors.Join(err, startAgain(x.ctx, x.w.postgres.Start)); err != nil {
		x.w.problem("copy PostgreSQL: %v", err)
	}
	x.w.did("copy PostgreSQL", false)
	return true
}

// promoteCopy is the failover to the copy.
func (x *chaos) promoteCopy() {
	s := x.standby
	x.standby = nil
	x.w.postgresBusy.Lock()
	defer x.w.postgresBusy.Unlock()
	name := "failover, behind"
	if s.cutOff {
		name = "failover, lost what no streamer has read"
		defer x.w.network.postgres.busy.Unlock()
		defer x.w.network.postgres.proxies.refuse(false)
	}
	x.failOver(name, func(dir string) error {
		x.w.upheavals.with(func() {
			x.w.upheavals.gaps = append(x.w.upheavals.gaps, gap{s.from, time.Now()})
			x.w.upheavals.tally.behind++
		})
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		return os.Rename(dir+"-copy", dir)
	})
}

// failOver kills PostgreSQL and promotes what replace leaves in its place.
func (x *chaos) failOver(name string, replace func(dir string) error) {
	err := x.w.failOver(x.ctx, replace)
	if err != nil {
		x.w.problem("failover: %v", err)
	}
	x.w.did(name, true)
	go func() {
		defer x.w.upheavals.deletes.Unlock()
		for !x.w.settled(x.ctx) && pause(x.ctx, samplePause) {
			continue
		}
	}()
}

func (w *environment) failOver(ctx context.Context, replace func(dir string) error) error {
	dir, err := w.postgresDir()
	if err != nil {
		return err
	}
	if err := killWhole(w.postgres.PID(), w.postgres.Kill); err != nil {
		return err
	}
	if err := replace(dir); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o644); err != nil {
		return err
	}
	if err := startAgain(ctx, w.postgres.Start); err != nil {
		return err
	}
	var promoted bool
	if err := w.ask(ctx, "SELECT pg_promote()", &promoted); err != nil || !promoted {
		return fmt.Errorf("promote: %v, %w", promoted, err)
	}
	u := w.upheavals
	timeline := u.total().failovers + 1 // of the primary that is gone
	at, err := forkOf(dir, timeline+1)
	u.with(func() {
		u.tally.failovers++
		u.forks = append(u.forks, fork{timeline, at})
	})
	return err
}

// forkOf reads where a timeline begins.
func forkOf(dir string, timeline int) (pglogrepl.LSN, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "pg_wal", fmt.Sprintf("%08X.history", timeline)))
	if err != nil {
		return 0, err
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if len(fields) < 2 {
		return 0, fmt.Errorf("history of timeline %d: %q", timeline, raw)
	}
	return pglogrepl.ParseLSN(fields[1])
}

// postgresDir is the folder itself, to which a link may lead.
func (w *environment) postgresDir() (string, error) {
	return filepath.EvalSymlinks(w.postgres.DataDir())
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// killWhole kills a postmaster and its children, and waits until none of them can commit any more.
func killWhole(postmaster int, kill func() error) error {
	_ = syscall.Kill(postmaster, syscall.SIGSTOP) // it starts no more children
	children := childrenOf(postmaster)
	if err := kill(); err != nil {
		return err
	}
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone
	}
	deadline := time.Now().Add(time.Minute)
	for _, pid := range children {
		for isRunning(pid) {
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d of PostgreSQL does not end", pid)
			}
			pause(context.Background(), 5*time.Millisecond)
		}
	}
	return nil
}

// isRunning reports whether a process is there and no zombie.
func isRunning(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}
