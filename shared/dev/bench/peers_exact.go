package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	exactKills   = 20
	exactWriters = 4
	exactPace    = 4 * time.Millisecond // of a writer
	// exactSettle is how long nothing may arrive until the rest counts as lost.
	exactSettle = time.Minute
)

func peersExact(ctx context.Context, env *environment) (*report, error) {
	r := newReport("peers-exact", fmt.Sprintf("After %d × kill -9 of what consumes, at random times under load", exactKills),
		"events", "lost", "duplicated", "duplicated without FINAL", "out of order", "s until complete")
	return withPeers(ctx, env, r, func(ctx context.Context, b *testbed, p peer) ([]float64, error) {
		if err := p.start(ctx); err != nil {
			return nil, err
		}
		if err := killUnderLoad(ctx, b, p); err != nil {
			return nil, err
		}
		began := time.Now()
		found, err := settle(ctx, b, p)
		if err != nil {
			return nil, err
		}
		complete := time.Since(began)
		if found.lost > 0 {
			complete = 0
		}
		return []float64{
			float64(found.events), float64(found.lost), float64(found.duplicated), float64(found.stored), float64(found.unordered), known(complete.Seconds()),
		}, p.stop(ctx)
	})
}

// killUnderLoad lets writers publish until the last kill is over.
func killUnderLoad(ctx context.Context, b *testbed, p peer) error {
	writing, stop := context.WithCancel(ctx)
	defer stop()
	g, work := errgroup.WithContext(writing)
	for w := range exactWriters {
		g.Go(func() error { return publishUntil(work, ctx, b, p.producing(), w) })
	}
	g.Go(func() error {
		defer stop()
		for range exactKills {
			sleepFor(work, 500*time.Millisecond+rand.N(2*time.Second)) //nolint:gosec // not a secret
			if err := p.kill(ctx); err != nil {
				return err
			}
			if err := p.start(ctx); err != nil {
				return err
			}
		}
		sleepFor(work, time.Second)
		return nil
	})
	return g.Wait()
}

// publishUntil publishes the events of a writer in order until stop; each is committed.
func publishUntil(stop, ctx context.Context, b *testbed, from producing, writer int) error {
	tick := time.NewTicker(exactPace)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop.Done():
			return nil
		case <-tick.C:
		}
		if _, err := b.pool.Exec(ctx, from.numbered(), n, writer); err != nil {
			return err
		}
	}
}

// found is what a comparison by id has found.
type found struct{ events, lost, duplicated, stored, unordered int }

// settle compares until all has arrived, or nothing has for exactSettle.
func settle(ctx context.Context, b *testbed, p peer) (found, error) {
	published, err := ids(ctx, b, p.producing())
	if err != nil {
		return found{}, err
	}
	last, changed := -1, time.Now()
	for {
		f, rows, err := compare(ctx, p.arrived(), published)
		switch {
		case err != nil && time.Since(changed) > exactSettle:
			return f, err
		case err == nil && (f.lost == 0 || rows == last && time.Since(changed) > exactSettle):
			return f, nil
		case err == nil && rows != last:
			last, changed = rows, time.Now()
		}
		sleepFor(ctx, 200*time.Millisecond)
		if ctx.Err() != nil {
			return f, ctx.Err()
		}
	}
}

// ids are the events that PostgreSQL has committed: the truth.
func ids(ctx context.Context, b *testbed, from producing) (map[string]bool, error) {
	rows, err := b.pool.Query(ctx, `SELECT `+from.id+`::text FROM `+from.table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	published := map[string]bool{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		published[id] = true
	}
	return published, rows.Err()
}

type arrivedRow struct {
	position  uint64
	id        string
	writer, n int64
}

func compare(ctx context.Context, l arrival, published map[string]bool) (f found, count int, err error) {
	arrived, err := read(ctx, l)
	if err != nil {
		return f, 0, err
	}
	f.events = len(published)
	once := map[string]bool{}
	var firsts []arrivedRow
	for _, row := range arrived {
		if !once[row.id] {
			once[row.id] = true
			firsts = append(firsts, row)
		}
	}
	for id := range published {
		if !once[id] {
			f.lost++
		}
	}
	f.duplicated = len(arrived) - len(once)
	f.stored = f.duplicated
	if l.stored != "" {
		n, err := l.number(ctx, l.stored)
		if err != nil {
			return f, 0, err
		}
		f.stored = n - len(once)
	}
	f.unordered = unordered(firsts)
	return f, len(arrived), nil
}

// read returns the rows by position.
func read(ctx context.Context, l arrival) (arrived []arrivedRow, err error) {
	rows, err := l.query(ctx, l.rows)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var r arrivedRow
		if err := rows.Scan(&r.position, &r.id, &r.writer, &r.n); err != nil {
			return nil, err
		}
		arrived = append(arrived, r)
	}
	slices.SortFunc(arrived, func(a, b arrivedRow) int {
		return cmp.Or(cmp.Compare(a.position, b.position), cmp.Compare(a.writer, b.writer), cmp.Compare(a.n, b.n))
	})
	return arrived, rows.Err()
}

// unordered counts rows that come behind a later one of their writer.
func unordered(rows []arrivedRow) (n int) {
	highest := map[int64]int64{}
	for _, r := range rows {
		if last, ok := highest[r.writer]; ok && r.n < last {
			n++
			continue
		}
		highest[r.writer] = r.n
	}
	return n
}
