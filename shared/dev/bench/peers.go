package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"
)

// peers returns who takes part, and why others do not. Ours runs twice: the difference is
// the noise of the machine.
func (env *environment) peers(ctx context.Context) (all []peer, missing []string) {
	all = []peer{diehard(env, "Die Hard"), diehard(env, "Die Hard again (A/A control)"), &materialized{}}
	if binary, reason := buildPeer(ctx, env, "gopqcdc"); reason == "" {
		all = append(all, gopqcdc(env, 2, binary), gopqcdc(env, 1, binary))
	} else {
		missing = append(missing, "go-pq-cdc: not run here: "+reason)
	}
	if binary, reason := buildPeer(ctx, env, "watermill"); reason == "" {
		all = append(all, watermill(binary, false), watermill(binary, true))
	} else {
		missing = append(missing, "watermill-sql: not run here: "+reason)
	}
	return append(all, &subscription{}), missing
}

// withPeers measures each peer once a round, on a testbed of its own.
func withPeers(ctx context.Context, env *environment, r *report, measure func(context.Context, *testbed, peer) ([]float64, error)) (*report, error) {
	all, missing := env.peers(ctx)
	for round := range env.Rounds {
		for _, p := range all {
			figures, err := env.measurePeer(ctx, p, measure)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name(), err)
			}
			env.progress("round %d: %s: %s", round+1, p.name(), r.describe(figures))
			r.add(p.name(), figures...)
		}
	}
	for _, p := range all {
		r.notes = append(r.notes, p.name()+": "+p.config())
	}
	r.notes = append(r.notes, missing...)
	return r, nil
}

func (env *environment) measurePeer(ctx context.Context, p peer, measure func(context.Context, *testbed, peer) ([]float64, error)) ([]float64, error) {
	b, err := env.newTestbed(ctx, "peers")
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	if err := p.prepare(ctx, b); err != nil {
		return nil, err
	}
	return measure(ctx, b, p)
}

// peerTimeout is how long a drain may take: a peer that needs longer gets the rate of
// what has arrived.
const peerTimeout = 90 * time.Second

func peersDrain(ctx context.Context, env *environment) (*report, error) {
	bulk, single := int(300_000*env.Scale), int(200_000*env.Scale)
	r := newReport("peers-drain", fmt.Sprintf("Drain of %d rows (%d in one transaction, %d of one row each)", bulk+single, bulk, single),
		"rows/s", "CPU µs/row", "PostgreSQL CPU µs/row", "ClickHouse CPU µs/row", "peak MB")
	return withPeers(ctx, env, r, func(ctx context.Context, b *testbed, p peer) ([]float64, error) {
		from := p.producing()
		for _, sql := range []string{from.bulk(1, bulk), from.single(1, single), "CHECKPOINT"} {
			if _, err := b.pool.Exec(ctx, sql); err != nil {
				return nil, err
			}
		}
		began, servers := time.Now(), env.serverCPU()
		if err := p.start(ctx); err != nil {
			return nil, err
		}
		rows, err := awaitCount(ctx, p.arrived(), bulk+single, began.Add(peerTimeout))
		if err != nil {
			return nil, err
		}
		took := time.Since(began)
		servers = env.serverCPU().since(servers)
		used := p.usage()
		n := float64(rows)
		perRow := func(d time.Duration) float64 { return known(float64(d.Microseconds()) / n) }
		return []float64{n / took.Seconds(), perRow(used.cpu), perRow(servers.postgres), perRow(servers.clickhouse), known(float64(used.peak) / (1 << 20))}, p.stop(ctx)
	})
}

// known turns 0, which no measurement gives, into a figure that is not known.
func known(v float64) float64 {
	if v == 0 {
		return math.NaN()
	}
	return v
}

// awaitCount waits for n rows and returns how many there are at the end. Counting costs
// CPU time, so it counts often only near the end.
func awaitCount(ctx context.Context, l arrival, n int, until time.Time) (int, error) {
	began := time.Now()
	for {
		have, err := l.number(ctx, l.count)
		if err != nil {
			return 0, err
		}
		if have >= n || time.Now().After(until) {
			return have, ctx.Err()
		}
		left := time.Duration(float64(time.Since(began)) * float64(n-have) / float64(have+1))
		sleepFor(ctx, min(max(left/4, 10*time.Millisecond), 500*time.Millisecond))
	}
}

func (b *testbed) askClickHouse(ctx context.Context, sql string) (rowScanner, error) {
	return b.ch.Query(ctx, sql)
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
