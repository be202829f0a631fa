package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	steadyRate    = 1000 // events per second
	steadyTime    = 20 * time.Second
	steadyWriters = 4
	idleTime      = 10 * time.Second
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
	if _, err := b.pool.Exec(ctx, `SELECT pg_create_logical_replication_slot('latency', 'pgoutput')`); err != nil {
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
	s := &steady{testbed: b, table: rt.table}
	if _, err := s.measureOne(ctx); err != nil { // warm-up: the program runs and its caches are filled
		return nil, err
	}
	stop, err := b.meter(ctx, "outbox%")
	if err != nil {
		return nil, err
	}
	if err := s.run(ctx); err != nil {
		return nil, err
	}
	c, err := stop()
	if err != nil {
		return nil, err
	}
	waits, err := s.waits(ctx)
	if err != nil {
		return nil, err
	}
	inserts, err := s.inserts(ctx)
	if err != nil {
		return nil, err
	}
	sleepFor(ctx, idleTime)
	idle, err := s.measureOne(ctx)
	if err != nil {
		return nil, err
	}
	n := float64(len(waits))
	at := func(q float64) float64 { return milliseconds(waits[int(q*(n-1))]) }
	return []float64{
		at(0.5), at(0.99), at(1), inserts, milliseconds(idle),
		milliseconds(c.cpu) / steadyTime.Seconds(), float64(c.wal) / n, float64(c.dead),
	}, nil
}

// steady produces single-event transactions at a fixed rate and records when
// ClickHouse has how many of them.
type steady struct {
	testbed   *testbed
	table     string
	seen      int // rows before the run
	committed [][]time.Time
	visible   []visibleCount
}

type visibleCount struct {
	rows int
	at   time.Time
}

func (s *steady) insert(ctx context.Context, writer, n int) error {
	_, err := s.testbed.pool.Exec(ctx, `INSERT INTO `+s.table+` (event_type, environment, event_context)
		VALUES ('tick', 'Bench', json_build_object('w', $1::int, 'n', $2::int, 'note', repeat('x', 200)))`, writer, n)
	return err
}

// measureOne writes an event and returns the time until it is visible.
func (s *steady) measureOne(ctx context.Context) (time.Duration, error) {
	if err := s.insert(ctx, -1, 0); err != nil {
		return 0, err
	}
	began := time.Now()
	for want := s.seen + 1; s.seen < want; {
		if err := s.countRows(ctx); err != nil {
			return 0, err
		}
		if time.Since(began) > time.Minute {
			return 0, fmt.Errorf("an event did not arrive within a minute")
		}
	}
	return time.Since(began), nil
}

// countRows counts the rows in ClickHouse.
func (s *steady) countRows(ctx context.Context) error {
	var n uint64
	if err := s.testbed.ch.QueryRow(ctx, "SELECT count() FROM event_log").Scan(&n); err != nil {
		return err
	}
	s.seen = int(n)
	return nil
}

func (s *steady) run(ctx context.Context) error {
	g, work := errgroup.WithContext(ctx)
	perWriter := int(steadyTime.Seconds()) * steadyRate / steadyWriters
	s.committed = make([][]time.Time, steadyWriters)
	before := s.seen
	for w := range steadyWriters {
		s.committed[w] = make([]time.Time, perWriter)
		g.Go(func() error { return s.write(work, w, perWriter) })
	}
	g.Go(func() error { return s.observe(work, before, before+perWriter*steadyWriters) })
	return g.Wait()
}

func (s *steady) write(ctx context.Context, writer, count int) error {
	tick := time.NewTicker(time.Second * steadyWriters / steadyRate)
	defer tick.Stop()
	for n := range count {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := s.insert(ctx, writer, n); err != nil {
			return err
		}
		s.committed[writer][n] = time.Now()
	}
	return nil
}

func (s *steady) observe(ctx context.Context, before, until int) error {
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for last := before; last < until; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := s.countRows(ctx); err != nil {
			return err
		}
		if s.seen > last {
			s.visible = append(s.visible, visibleCount{s.seen - before, time.Now()})
			last = s.seen
		}
	}
	return nil
}

// waits returns the sorted times from commit to visibility. Rows become visible
// in commit order, so that the nth row was visible when n rows were.
func (s *steady) waits(ctx context.Context) (waits []time.Duration, err error) {
	rows, err := s.testbed.ch.Query(ctx, `
		SELECT JSONExtractInt(event_context, 'w'), JSONExtractInt(event_context, 'n') FROM event_log
		WHERE JSONExtractInt(event_context, 'w') >= 0 ORDER BY ingested_at, commit_lsn, commit_seq`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	next := 0
	for n := 1; rows.Next(); n++ {
		var writer, number int64
		if err := rows.Scan(&writer, &number); err != nil {
			return nil, err
		}
		for s.visible[next].rows < n {
			next++
		}
		waits = append(waits, max(0, s.visible[next].at.Sub(s.committed[writer][number])))
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	slices.Sort(waits)
	return waits, nil
}

// inserts returns the inserts per second between the first and the last of the run.
func (s *steady) inserts(ctx context.Context) (rate float64, err error) {
	err = s.testbed.ch.QueryRow(ctx, `
		SELECT 1000 * (uniqExact(ingested_at) - 1) / (max(toUnixTimestamp64Milli(ingested_at)) - min(toUnixTimestamp64Milli(ingested_at)))
		FROM event_log WHERE JSONExtractInt(event_context, 'w') >= 0`).Scan(&rate)
	return rate, err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func sleepFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
