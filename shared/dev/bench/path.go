package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"diehard/shared/dev/link"
)

// pathColumns are rows/s from START_REPLICATION on, and what was needed before.
var pathColumns = []string{
	"rows/s", "against pg_recvlogical", "segments per row", "CPU µs/row", "walsender CPU µs/row", "ms until START_REPLICATION",
}

// pathControl is the contestant that the others of the same link are compared with.
const pathControl = "pg_recvlogical"

var pathContestants = []contestant{
	{name: pathControl, start: recvlogical},
	{name: "Die Hard", countsRows: true, start: ours},
	{name: "Die Hard's reader, discarding", start: ourReader},
	{name: "idiom", countsRows: true, start: plainIdiom},
}

// pathPostgres drains over links with a round trip and an MTU: PostgreSQL is at the far end, all
// others are at the near one.
func pathPostgres(ctx context.Context, env *environment) (*report, error) {
	if _, err := exec.LookPath("pg_recvlogical"); err != nil {
		return nil, fmt.Errorf("%w: pg_recvlogical is missing (Debian's postgresql-client has it)", errSkipped)
	}
	l, err := openLink()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	far, err := env.postgresAtFarEnd(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() { _ = far.postgres.Stop(context.WithoutCancel(ctx)) }()
	b, log, err := far.pathBacklog(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	r := newReport("path-postgres", fmt.Sprintf("Drain of %d rows (%d in one transaction, %d of one row each) over a link", log.rows(), log.bulk, log.single), pathColumns...)
	r.control = pathControl
	for round := range env.Rounds {
		for _, p := range env.paths() {
			if err := p.measure(ctx, b, l, r, round, log); err != nil {
				return nil, fmt.Errorf("%s: %w", p, err)
			}
		}
	}
	return r, l.Set(link.Options{}) // so that the end takes no longer
}

// onePath is a link as one measurement has it.
type onePath struct {
	link.Options
	tls bool
}

func (p onePath) String() string {
	name := fmt.Sprintf("%s, MTU %d", p.RTT, p.MTU)
	if p.tls {
		name += ", TLS"
	}
	if p.Offload {
		name += ", offload"
	}
	return name
}

func (o options) paths() (all []onePath) {
	for _, offload := range o.Offload {
		for _, mtu := range o.MTU {
			for _, tls := range o.TLS {
				for _, rtt := range o.RTT {
					all = append(all, onePath{link.Options{RTT: rtt, MTU: mtu, Offload: offload}, tls})
				}
			}
		}
	}
	return all
}

// measure adds a round of each contestant.
func (p onePath) measure(ctx context.Context, b *testbed, l *link.Link, r *report, round int, log backlog) error {
	if err := l.Set(p.Options); err != nil {
		return err
	}
	b.pool.Reset() // connections know their MTU
	over := *b
	if p.tls {
		over.url = withTLS(b.url)
	}
	var control float64
	for i, c := range pathContestants {
		segments := l.Segments(link.Far)
		d, err := drainOnce(ctx, &over, c, fmt.Sprintf("path_%d_%d", round, i), log)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		streamed := d.ended.Sub(d.sender.started)
		rate := d.rows / streamed.Seconds()
		if c.name == pathControl {
			control = rate
		}
		figures := []float64{
			rate, rate / control, float64(l.Segments(link.Far)-segments) / d.rows, d.perRow(d.cpu), d.perRow(d.sender.cpu), float64((d.took - streamed).Milliseconds()),
		}
		name := p.String() + ": " + c.name
		b.env.progress("round %d: %s: %s", round+1, name, r.describe(figures))
		r.add(name, figures...)
	}
	return nil
}

// openLink opens a link to the machine.
func openLink() (*link.Link, error) {
	l, err := link.Open(link.Options{Here: true})
	if errors.Is(err, link.ErrUnavailable) {
		return nil, fmt.Errorf("%w: %w", errSkipped, err)
	}
	return l, err
}

// pathBacklog makes databases with what is to be drained over links.
func (env *environment) pathBacklog(ctx context.Context) (*testbed, backlog, error) {
	log := backlog{bulk: int(200_000 * env.Scale), single: int(100_000 * env.Scale)}
	b, err := env.newTestbed(ctx, "path")
	if err != nil {
		return nil, log, err
	}
	env.progress("producing a backlog of %d rows in one transaction and %d of one row each", log.bulk, log.single)
	if err := log.produce(ctx, b); err != nil {
		return nil, log, errors.Join(err, b.close(ctx))
	}
	return b, log, nil
}
