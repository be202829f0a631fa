package main

import (
	"context"
	"errors"
	"fmt"
	"math"
)

func peersLatency(ctx context.Context, env *environment) (*report, error) {
	r := newReport("peers-latency", fmt.Sprintf("Commit to visible, %d events/s for %s", steadyRate, steadyTime),
		"p50 ms", "p99 ms", "max ms", "one event after 10 idle s, ms", "PostgreSQL CPU ms/s", "WAL bytes/event", "dead tuples/event")
	return withPeers(ctx, env, r, func(ctx context.Context, b *testbed, p peer) ([]float64, error) {
		if err := p.start(ctx); err != nil {
			return nil, err
		}
		l := p.arrived()
		s := &steady{
			insert: func(ctx context.Context, writer, n int) error {
				_, err := b.pool.Exec(ctx, p.producing().numbered(), n, writer)
				return err
			},
			count: func(ctx context.Context) (int, error) { return l.number(ctx, l.count) },
		}
		if _, err := s.one(ctx); err != nil { // warm-up
			return nil, err
		}
		stop, err := b.meter(ctx, "%")
		if err != nil {
			return nil, err
		}
		waits, err := s.run(ctx)
		if err != nil && !errors.Is(err, errFallsBehind) {
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
