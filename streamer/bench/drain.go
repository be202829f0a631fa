package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// contestant drains a slot into ClickHouse, or to nowhere.
type contestant struct {
	name    string
	lands   bool // its rows are counted in ClickHouse
	start   func(ctx context.Context, b *bed, slot string, log backlog) *exec.Cmd
	prepare string // SQL, outside of the measured time
	tidy    string // SQL, so that the next one is not disturbed by what this one left
}

func ours(ctx context.Context, b *bed, slot string, _ backlog) *exec.Cmd {
	args := []string{"run"}
	if b.lab.Profile != "" {
		args = append(args, "--cpuprofile", b.lab.Profile)
	}
	cmd := exec.CommandContext(ctx, b.lab.streamer, args...)
	cmd.Env = b.environ(slot)
	return cmd
}

func plainIdiom(ctx context.Context, b *bed, slot string, _ backlog) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.lab.self, "idiom")
	cmd.Env = b.environ(slot)
	return cmd
}

func recvlogical(ctx context.Context, b *bed, slot string, log backlog) *exec.Cmd {
	return exec.CommandContext(ctx, "pg_recvlogical", "--dbname="+b.url, "--slot="+slot, "--start",
		"--file=/dev/null", "--no-loop", "--endpos="+log.end,
		"-o", "proto_version=1", "-o", "publication_names=outbox_pub", "-o", "binary=true")
}

// reapTime lets the postmaster count the CPU time of a walsender that has ended.
const reapTime = 200 * time.Millisecond

// drain is the time to move a backlog of WAL.
func drain(ctx context.Context, l *lab) (*report, error) {
	log := backlog{bulk: int(1_000_000 * l.Scale), single: int(450_000 * l.Scale)}
	b, err := l.newBed(ctx, "drain")
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	l.progress("producing a backlog of %d rows in one transaction and %d of one row each", log.bulk, log.single)
	if err := log.produce(ctx, b); err != nil {
		return nil, err
	}
	contestants := []contestant{
		{name: "Die Hard", lands: true, start: ours},
		{name: "Die Hard again (A/A control)", lands: true, start: ours},
		{name: "plain pglogrepl idiom", lands: true, start: plainIdiom},
	}
	if _, err := exec.LookPath("pg_recvlogical"); err == nil {
		contestants = append(contestants, contestant{name: "pg_recvlogical to /dev/null", start: recvlogical})
	}
	contestants = append(contestants, contestant{
		name: "polling outbox", lands: true, start: pollingWorker, prepare: polledBacklog, tidy: "DROP TABLE outbox_polled; CHECKPOINT",
	})
	r := newReport("drain", fmt.Sprintf("Drain of %d rows (%d in one transaction, %d of one row each)", log.rows(), log.bulk, log.single), drainColumns...)
	for round := range l.Rounds {
		for i, c := range contestants {
			m, err := drainOnce(ctx, b, c, fmt.Sprintf("run_%d_%d", round, i), log)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			l.progress("round %d: %s: %.0f rows/s, %.2f µs/row, %.0f MB", round+1, c.name, m[0], m[1], m[4])
			r.add(c.name, m...)
		}
	}
	return r, nil
}

// drainColumns are the figures of drainOnce. CPU is that of the contestant, and of
// both servers meanwhile: PostgreSQL's is nearly all its walsender's.
var drainColumns = []string{"rows/s", "CPU µs/row", "PostgreSQL CPU µs/row", "ClickHouse CPU µs/row", "peak MB"}

func drainOnce(ctx context.Context, b *bed, c contestant, slot string, log backlog) ([]float64, error) {
	if err := b.freshClickHouse(ctx); err != nil {
		return nil, err
	}
	if err := b.copySlot(ctx, slot); err != nil {
		return nil, err
	}
	if _, err := b.pool.Exec(ctx, c.prepare); err != nil {
		return nil, err
	}
	cmd := c.start(ctx, b, slot, log)
	cmd.Stderr = os.Stderr
	began, servers := time.Now(), b.lab.serverCPU()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var err error
	var took time.Duration
	if c.lands {
		took, err = b.untilLanded(ctx, log.rows(), began)
		servers = b.lab.serverCPU().since(servers) // its walsender still lives
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its rows are what counts
	} else {
		err = cmd.Wait()
		took = time.Since(began)
		sleepFor(ctx, reapTime)
		servers = b.lab.serverCPU().since(servers)
	}
	if err != nil {
		return nil, err
	}
	if _, err := b.pool.Exec(ctx, c.tidy); err != nil {
		return nil, err
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return nil, fmt.Errorf("no resource usage on this platform")
	}
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	rows := float64(log.rows())
	perRow := func(d time.Duration) float64 { return float64(d.Microseconds()) / rows }
	return []float64{
		rows / took.Seconds(), perRow(cpu), perRow(servers.postgres), perRow(servers.clickhouse), float64(usage.Maxrss) / 1024,
	}, b.dropSlot(ctx, slot)
}

// untilLanded waits until ClickHouse has n rows, and checks that each is there
// once. Counting costs the machine something, so it counts often only near the end.
func (b *bed) untilLanded(ctx context.Context, rows int, began time.Time) (time.Duration, error) {
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
