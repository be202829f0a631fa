package main

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	steadyRate    = 1000 // events per second
	steadyTime    = 20 * time.Second
	steadyWriters = 4
	idleTime      = 10 * time.Second
)

// behindTime is how long after the last event all must be visible.
const behindTime = 10 * time.Second

var errFallsBehind = errors.New("falls ever further behind")

// steady publishes single-event transactions at a fixed rate and watches how many of them
// are visible.
type steady struct {
	insert func(ctx context.Context, writer, n int) error
	count  func(ctx context.Context) (int, error)
	sent   int

	mu        sync.Mutex
	committed []time.Time
}

type visibleCount struct {
	rows int
	at   time.Time
}

func (s *steady) publish(ctx context.Context, writer, n int) error {
	if err := s.insert(ctx, writer, n); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed = append(s.committed, time.Now())
	return nil
}

// one returns the time from the commit of an event until it is visible.
func (s *steady) one(ctx context.Context) (time.Duration, error) {
	if err := s.publish(ctx, -1, 0); err != nil {
		return 0, err
	}
	s.sent++
	began := time.Now()
	for {
		n, err := s.count(ctx)
		switch {
		case err != nil:
			return 0, err
		case n >= s.sent:
			return time.Since(began), nil
		case time.Since(began) > time.Minute:
			return 0, errors.New("an event did not arrive within a minute")
		}
		sleepFor(ctx, time.Millisecond)
	}
}

// run returns the sorted times from commit to visibility, or [errFallsBehind]. The nth
// commit is taken to be visible when n rows are: the writers commit within a few
// milliseconds of each other.
func (s *steady) run(ctx context.Context) ([]time.Duration, error) {
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

func (s *steady) pace(ctx context.Context, writer, count int) error {
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

func (s *steady) watch(ctx context.Context, first int) (seen []visibleCount, err error) {
	until := time.Now().Add(steadyTime + behindTime)
	for last := first; last < s.sent; sleepFor(ctx, 3*time.Millisecond) {
		n, err := s.count(ctx)
		if err != nil {
			return nil, err
		}
		if n > last {
			last = n
			seen = append(seen, visibleCount{last - first, time.Now()})
		}
		if time.Now().After(until) {
			return nil, errFallsBehind
		}
	}
	return seen, ctx.Err()
}

// quantile of sorted waits in milliseconds; NaN without waits.
func quantile(waits []time.Duration, q float64) float64 {
	if len(waits) == 0 {
		return math.NaN()
	}
	return milliseconds(waits[int(q*float64(len(waits)-1))])
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func sleepFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
