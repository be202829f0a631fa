package main

import (
	"context"
	"fmt"
	"os/exec"
	"syscall"
)

// route is a program that carries events to ClickHouse, and the table it reads.
type route struct {
	name  string
	table string
	start func(ctx context.Context, b *testbed, slot string, log backlog) *exec.Cmd
}

func pollingWorker(ctx context.Context, b *testbed, slot string, _ backlog) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.env.self, "polling")
	cmd.Env = b.environ(slot)
	return cmd
}

// latency is the time from a commit until a query of ClickHouse finds the row,
// at a steady rate, with what it costs PostgreSQL.
func latency(ctx context.Context, env *environment) (*report, error) {
	r := newReport("latency", fmt.Sprintf("Commit to visible in ClickHouse, %d events/s for %s, default settings", steadyRate, steadyTime),
		"p50 ms", "p99 ms", "max ms", "inserts/s", "after idle, ms", "PostgreSQL CPU ms/s", "WAL bytes/event", "dead tuples")
	routes := []route{
		{"Die Hard", "outbox", ours},
		{"plain pglogrepl idiom", "outbox", plainIdiom},
		{"polling outbox", "outbox_polled", pollingWorker},
	}
	for round := range env.Rounds {
		for _, rt := range routes {
			figures, err := latencyOnce(ctx, env, rt)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", rt.name, err)
			}
			env.progress("round %d: %s: p50 %.0f ms, p99 %.0f ms", round+1, rt.name, figures[0], figures[1])
			r.add(rt.name, figures...)
		}
	}
	return r, nil
}

func latencyOnce(ctx context.Context, env *environment, rt route) ([]float64, error) {
	b, err := env.newTestbed(ctx, "latency")
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	if _, err := b.pool.Exec(ctx, pollingTable); err != nil {
		return nil, err
	}
	if err := b.recordedSlot(ctx, "latency", `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`); err != nil {
		return nil, err
	}
	cmd := rt.start(ctx, b, "latency", backlog{})
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its rows were counted
	}()
	s := steadyOn(b, rt.table)
	if _, err := s.one(ctx); err != nil { // warm-up: the program runs and its caches are filled
		return nil, err
	}
	stop, err := b.meter(ctx, "%outbox%")
	if err != nil {
		return nil, err
	}
	waits, err := s.run(ctx)
	if err != nil {
		return nil, err
	}
	c, err := stop()
	if err != nil {
		return nil, err
	}
	inserts, err := insertsASecond(ctx, b)
	if err != nil {
		return nil, err
	}
	sleepFor(ctx, idleTime)
	idle, err := s.one(ctx)
	if err != nil {
		return nil, err
	}
	n := float64(len(waits))
	return []float64{
		quantile(waits, 0.5), quantile(waits, 0.99), quantile(waits, 1), inserts, milliseconds(idle),
		milliseconds(c.cpu) / steadyTime.Seconds(), float64(c.wal) / n, float64(c.dead),
	}, nil
}

func steadyOn(b *testbed, table string) *steady {
	return &steady{
		insert: func(ctx context.Context, writer, n int) error {
			_, err := b.pool.Exec(ctx, `INSERT INTO `+table+` (event_type, environment, event_context)
				VALUES ('tick', 'Bench', json_build_object('w', $1::int, 'n', $2::int, 'note', repeat('x', 200)))`, writer, n)
			return err
		},
		count: func(ctx context.Context) (int, error) {
			var n uint64
			err := b.ch.QueryRow(ctx, "SELECT count() FROM event_log").Scan(&n)
			return int(n), err
		},
	}
}

// insertsASecond counts those between the first and the last of a run.
func insertsASecond(ctx context.Context, b *testbed) (rate float64, err error) {
	err = b.ch.QueryRow(ctx, `
		SELECT 1000 * (uniqExact(ingested_at) - 1) / (max(toUnixTimestamp64Milli(ingested_at)) - min(toUnixTimestamp64Milli(ingested_at)))
		FROM event_log WHERE JSONExtractInt(event_context, 'w') >= 0`).Scan(&rate)
	return rate, err
}
