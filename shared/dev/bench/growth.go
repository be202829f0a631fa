package main

import (
	"context"
	"fmt"
)

// growth drains backlogs of very different sizes: rows/s and memory must not depend on them.
func growth(ctx context.Context, env *environment) (*report, error) {
	r := newReport("growth", "Drain of backlogs of different sizes, half in one transaction, half in transactions of one row", drainColumns...)
	for _, size := range []int{100_000, 1_000_000, 10_000_000} {
		size = int(float64(size) * env.Scale)
		log := backlog{bulk: size / 2, single: size / 2}
		if err := growthOf(ctx, env, r, log); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func growthOf(ctx context.Context, env *environment, r *report, log backlog) error {
	b, err := env.newTestbed(ctx, "growth")
	if err != nil {
		return err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	env.progress("producing a backlog of %d rows", log.rows())
	if err := log.produce(ctx, b); err != nil {
		return err
	}
	name := fmt.Sprintf("Die Hard, %d rows", log.rows())
	for round := range env.Rounds {
		d, err := drainOnce(ctx, b, contestant{name: name, countsRows: true, start: ours}, fmt.Sprintf("growth_%d", round), log)
		if err != nil {
			return err
		}
		env.progress("round %d: %s: %.0f rows/s, %.0f MB", round+1, name, d.rows/d.took.Seconds(), d.peak)
		r.add(name, d.figures()...)
	}
	return nil
}
