package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// fallingBehind is how long after the last event all must be visible.
const fallingBehind = 10 * time.Second

func peersLatency(ctx context.Context, env *environment) (*report, error) {
	r := newReport("peers-latency", fmt.Sprintf("Commit to visible, %d events/s for %s", steadyRate, steadyTime),
		"p50 ms", "p99 ms", "max ms", "one event after 10 idle s, ms", "PostgreSQL CPU ms/s", "WAL bytes/event", "dead tuples/event")
	return withPeers(ctx, env, r, func(ctx context.Context, b *testbed, p peer) ([]float64, error) {
		if err := p.start(ctx); err != nil {
			return nil, err
		}
		s := &paced{b: b, p: p}
		if _, err := s.one(ctx); err != nil { // warm-up
			return nil, err
		}
		stop, err := b.meter(ctx, "%")
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
		idle := math.NaN()
		if waits != nil {
			sleepFor(ctx, idleTime)
			took, err := s.one(ctx)
			if err != nil {
				return nil, err
			}
			idle = milliseconds(took)
		}
		n := float64(s.sent)
		return []float64{
			quantile(waits, 0.5), quantile(waits, 0.99), quantile(waits, 1), idle,
			milliseconds(c.cpu) / steadyTime.Seconds(), float64(c.wal) / n, float64(c.dead) / n,
		}, p.stop(ctx)
	})
}

// quantile of sorted waits in milliseconds; NaN without waits.
func quantile(waits []time.Duration, q float64) float64 {
	if len(waits) == 0 {
		return math.NaN()
	}
	return milliseconds(waits[int(q*float64(len(waits)-1))])
}

// paced publishes at a fixed rate and watches the number of rows that are visible.
type paced struct {
	b    *testbed
	p    peer
	sent int

	mu        sync.Mutex
	committed []time.Time
}

func (s *paced) publish(ctx context.Context, writer, n int) error {
	_, err := s.b.pool.Exec(ctx, s.p.producing().numbered(), n, writer)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed = append(s.committed, time.Now())
	return nil
}

// one returns the time from the commit of one event until it is visible.
func (s *paced) one(ctx context.Context) (time.Duration, error) {
	if err := s.publish(ctx, -1, 0); err != nil {
		return 0, err
	}
	s.sent++
	began := time.Now()
	l := s.p.arrived()
	for {
		n, err := l.number(ctx, l.count)
		switch {
		case err != nil:
			return 0, err
		case n >= s.sent:
			return time.Since(began), nil
		case time.Since(began) > time.Minute:
			return 0, fmt.Errorf("an event did not arrive within a minute")
		}
		sleepFor(ctx, time.Millisecond)
	}
}

// run returns the sorted waits; nil for a peer that falls ever further behind. The nth commit is taken to be visible when n rows are:
// the writers commit within a few milliseconds of each other.
func (s *paced) run(ctx context.Context) ([]time.Duration, error) {
	g, work := errgroup.WithContext(ctx)
	each := int(steadyTime.Seconds()) * steadyRate / steadyWriters
	first := s.sent
	s.committed = nil
	for w := range steadyWriters {
		g.Go(func() error { return s.pace(work, w, each) })
	}
	s.sent += each * steadyWriters
	var seen []visibleCount
	g.Go(func() (err error) {
		seen, err = s.watch(work, first)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if seen == nil {
		return nil, nil
	}
	slices.SortFunc(s.committed, time.Time.Compare)
	waits, next := make([]time.Duration, 0, len(s.committed)), 0
	for i, at := range s.committed {
		for seen[next].rows < i+1 {
			next++
		}
		waits = append(waits, max(0, seen[next].at.Sub(at)))
	}
	slices.Sort(waits)
	return waits, nil
}

func (s *paced) pace(ctx context.Context, writer, count int) error {
	tick := time.NewTicker(time.Second * steadyWriters / steadyRate)
	defer tick.Stop()
	for n := range count {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := s.publish(ctx, writer, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *paced) watch(ctx context.Context, first int) (seen []visibleCount, err error) {
	l, until := s.p.arrived(), time.Now().Add(steadyTime+fallingBehind)
	for last := first; last < s.sent; sleepFor(ctx, 3*time.Millisecond) {
		n, err := l.number(ctx, l.count)
		if err != nil {
			return nil, err
		}
		if n > last {
			last = n
			seen = append(seen, visibleCount{last - first, time.Now()})
		}
		if time.Now().After(until) {
			return nil, nil
		}
	}
	return seen, ctx.Err()
}
