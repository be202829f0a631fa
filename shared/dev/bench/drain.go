package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// contestant drains a slot into ClickHouse or /dev/null.
type contestant struct {
	name       string
	countsRows bool // whether its rows are counted in ClickHouse
	start      func(ctx context.Context, b *testbed, slot string, log backlog) *exec.Cmd
	half       bool   // its walsender runs half of the time
	prepare    string // SQL to run before the measurement
	cleanup    string // SQL to run after the measurement
}

func ours(ctx context.Context, b *testbed, slot string, _ backlog) *exec.Cmd {
	args := []string{"run"}
	if b.env.Profile != "" {
		args = append(args, "--cpuprofile", b.env.Profile)
	}
	cmd := exec.CommandContext(ctx, b.env.streamer, args...)
	cmd.Env = b.environ(slot)
	return cmd
}

func plainIdiom(ctx context.Context, b *testbed, slot string, _ backlog) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.env.self, "idiom")
	cmd.Env = b.environ(slot)
	return cmd
}

func recvlogical(ctx context.Context, b *testbed, slot string, log backlog) *exec.Cmd {
	return exec.CommandContext(ctx, "pg_recvlogical", "--dbname="+b.url, "--slot="+slot, "--start",
		"--file=/dev/null", "--no-loop", "--endpos="+log.end,
		"-o", "proto_version=1", "-o", "publication_names=outbox_pub", "-o", "binary=true")
}

// reapTime lets the postmaster count the CPU time of a walsender that has ended.
const reapTime = 200 * time.Millisecond

// drain measures the time to move a backlog of WAL.
func drain(ctx context.Context, env *environment) (*report, error) {
	log := backlog{bulk: int(1_000_000 * env.Scale), single: int(450_000 * env.Scale)}
	b, err := env.newTestbed(ctx, "drain")
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	env.progress("producing a backlog of %d rows in one transaction and %d of one row each", log.bulk, log.single)
	if err := log.produce(ctx, b); err != nil {
		return nil, err
	}
	contestants := []contestant{
		{name: "Die Hard", countsRows: true, start: ours},
		{name: "Die Hard again (A/A control)", countsRows: true, start: ours},
		{name: "Die Hard's reader, discarding", start: ourReader},
		{name: "plain pglogrepl idiom", countsRows: true, start: plainIdiom},
	}
	if _, err := exec.LookPath("pg_recvlogical"); err == nil {
		contestants = append(contestants, contestant{name: "pg_recvlogical to /dev/null", start: recvlogical},
			contestant{name: "pg_recvlogical, walsender at half speed", start: recvlogical, half: true})
	}
	contestants = append(contestants, contestant{name: "Die Hard, walsender at half speed", countsRows: true, start: ours, half: true})
	contestants = append(contestants, contestant{
		name: "polling outbox", countsRows: true, start: pollingWorker, prepare: polledBacklog, cleanup: "DROP TABLE outbox_polled; CHECKPOINT",
	})
	r := newReport("drain", fmt.Sprintf("Drain of %d rows (%d in one transaction, %d of one row each)", log.rows(), log.bulk, log.single), drainColumns...)
	for round := range env.Rounds {
		for i, c := range contestants {
			d, err := drainOnce(ctx, b, c, fmt.Sprintf("run_%d_%d", round, i), log)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			env.progress("round %d: %s: %s", round+1, c.name, r.describe(d.figures()))
			r.add(c.name, d.figures()...)
		}
	}
	return r, nil
}

// drainColumns are the figures of drainOnce: the CPU time of the contestant and of
// both servers. PostgreSQL's is almost all the walsender's, whose segments and context switches
// say why.
var drainColumns = []string{
	"rows/s", "CPU µs/row", "PostgreSQL CPU µs/row", "ClickHouse CPU µs/row", "peak MB",
	"walsender CPU µs/row", "segments per 1,000 rows", "walsender's context switches per 1,000 rows",
}

// drained is what a drain took.
type drained struct {
	rows    float64
	ended   time.Time
	took    time.Duration // with the contestant's start
	cpu     time.Duration // of the contestant
	servers serverCPU
	peak    float64 // MB
	sender  walsender
}

func (d drained) perRow(t time.Duration) float64 { return float64(t.Microseconds()) / d.rows }

func (d drained) figures() []float64 {
	return []float64{
		d.rows / d.took.Seconds(), d.perRow(d.cpu), d.perRow(d.servers.postgres), d.perRow(d.servers.clickhouse), d.peak,
		d.perRow(d.sender.cpu), 1000 * d.sender.segments / d.rows, 1000 * d.sender.switches / d.rows,
	}
}

func drainOnce(ctx context.Context, b *testbed, c contestant, slot string, log backlog) (d drained, err error) {
	if err := b.freshClickHouse(ctx); err != nil {
		return d, err
	}
	if err := b.copySlot(ctx, slot); err != nil {
		return d, err
	}
	if _, err := b.pool.Exec(ctx, c.prepare); err != nil {
		return d, err
	}
	cmd := c.start(ctx, b, slot, log)
	cmd.Stderr = os.Stderr
	began, servers := time.Now(), b.env.serverCPU()
	if err := cmd.Start(); err != nil {
		return d, err
	}
	watched := b.watchWalsender(ctx, slot, c.half)
	if c.countsRows {
		d.took, err = b.waitForRows(ctx, log.rows(), began)
		d.sender = watched()
		servers = b.env.serverCPU().since(servers) // its walsender still runs
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its rows were checked
	} else {
		err = cmd.Wait()
		d.took = time.Since(began)
		d.sender = watched()
		sleepFor(ctx, reapTime)
		servers = b.env.serverCPU().since(servers)
	}
	if err != nil {
		return d, err
	}
	if _, err := b.pool.Exec(ctx, c.cleanup); err != nil {
		return d, err
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return d, fmt.Errorf("no resource usage on this platform")
	}
	d.rows, d.ended, d.servers, d.peak = float64(log.rows()), began.Add(d.took), servers, float64(usage.Maxrss)/1024
	d.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return d, b.dropSlot(ctx, slot)
}

// waitForRows waits until ClickHouse has n rows, and checks that none is duplicated.
// Counting costs CPU time, so it counts often only near the end.
func (b *testbed) waitForRows(ctx context.Context, rows int, began time.Time) (time.Duration, error) {
	n := uint64(rows) //nolint:gosec // never negative
	var have, ids uint64
	for {
		if err := b.ch.QueryRow(ctx, "SELECT count() FROM event_log").Scan(&have); err != nil {
			return 0, err
		}
		if have >= n {
			break
		}
		if time.Since(began) > 10*time.Minute {
			return 0, fmt.Errorf("%d of %d rows after ten minutes", have, n)
		}
		left := time.Duration(float64(time.Since(began)) * float64(n-have) / float64(have+1))
		sleepFor(ctx, min(max(left/4, 10*time.Millisecond), 500*time.Millisecond))
	}
	took := time.Since(began)
	if err := b.ch.QueryRow(ctx, "SELECT uniqExact(event_id) FROM event_log").Scan(&ids); err != nil {
		return 0, err
	}
	if have != n || ids != n {
		return 0, fmt.Errorf("%d rows with %d ids in ClickHouse, %d were committed", have, ids, n)
	}
	return took, nil
}
