package main

import (
	"context"
	"fmt"
	"path/filepath"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/link"
)

// pathClickHouse drains into a ClickHouse at the far end of a link; PostgreSQL is at the near one.
func pathClickHouse(ctx context.Context, env *environment) (*report, error) {
	l, err := openLink()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	far, err := env.clickhouseAtFarEnd(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() { _ = far.clickhouse.Stop(context.WithoutCancel(ctx)) }()
	b, log, err := far.pathBacklog(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	r := newReport("path-clickhouse", fmt.Sprintf("Drain of %d rows (%d in one transaction, %d of one row each) into a ClickHouse behind a link", log.rows(), log.bulk, log.single),
		"rows/s", "rows per insert", "ms per insert, from one to the next", "CPU µs/row", "ClickHouse CPU µs/row")
	r.control = "idiom"
	contestants := []contestant{
		{name: "Die Hard", countsRows: true, start: ours},
		{name: "idiom", countsRows: true, start: plainIdiom},
	}
	for round := range env.Rounds {
		for _, p := range env.paths() {
			if p.tls { // the embedded ClickHouse has none
				continue
			}
			if err := l.Set(p.Options); err != nil {
				return nil, err
			}
			for i, c := range contestants {
				if err := b.intoFarEnd(ctx, c, r, p, fmt.Sprintf("path_%d_%d", round, i), log); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", p, c.name, err)
				}
			}
		}
	}
	return r, l.Set(link.Options{}) // so that the end takes no longer
}

// intoFarEnd adds a round of a contestant.
func (b *testbed) intoFarEnd(ctx context.Context, c contestant, r *report, p onePath, slot string, log backlog) error {
	d, err := drainOnce(ctx, b, c, slot, log)
	if err != nil {
		return err
	}
	var inserts uint64 // each has a time of its own
	if err := b.ch.QueryRow(ctx, "SELECT uniqExact(ingested_at) FROM event_log").Scan(&inserts); err != nil {
		return err
	}
	streamed := d.ended.Sub(d.sender.started)
	figures := []float64{
		d.rows / streamed.Seconds(), d.rows / float64(inserts), float64(streamed.Milliseconds()) / float64(inserts),
		d.perRow(d.cpu), d.perRow(d.servers.clickhouse),
	}
	name := p.String() + ": " + c.name
	b.env.progress("%s: %s", name, r.describe(figures))
	r.add(name, figures...)
	return nil
}

// clickhouseAtFarEnd returns env with a ClickHouse of its own at the far end of a link.
func (env *environment) clickhouseAtFarEnd(ctx context.Context, l *link.Link) (*environment, error) {
	if env.clickhouse == nil {
		return nil, fmt.Errorf("%w: the server of CLICKHOUSE_HOST cannot be put behind a link: unset it", errSkipped)
	}
	dir := filepath.Join(env.dir, "path-clickhouse")
	if left := embedded.FindClickHouse(dir); left != nil { // its link has gone
		if err := left.Stop(ctx); err != nil {
			return nil, err
		}
	}
	far := *env
	err := l.Within(link.Far, func() (err error) {
		far.clickhouse, err = embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{
			DataDir: dir, Address: l.Address(link.Far).String(), Log: env.progress,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	far.chConfig = far.clickhouse.Config("default")
	return &far, nil
}
