package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"diehard/shared/event"
)

const (
	producers    = 8
	producerTime = 8 * time.Second
)

// producer is what publishing costs the application and its database: eight
// clients, one event a transaction, as fast as they can.
func producer(ctx context.Context, l *lab) (*report, error) {
	ways := []struct {
		name    string
		publish func(context.Context, *pgxpool.Pool) error
	}{
		{"event.Publish into outbox", publishGo},
		{"publish_event(…) into outbox", publishSQL},
		{"polled outbox: identity key, status, partial index", publishPolled},
	}
	r := newReport("producer", fmt.Sprintf("Publishing: %d clients, one event a transaction, %s", producers, producerTime),
		"events/s", "WAL bytes/event", "PostgreSQL CPU µs/event", "table bytes/event")
	for range l.Rounds {
		for _, way := range ways {
			figures, err := produceOnce(ctx, l, way.publish)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", way.name, err)
			}
			l.progress("%s: %.0f events/s", way.name, figures[0])
			r.add(way.name, figures...)
		}
	}
	return r, nil
}

func publishGo(ctx context.Context, pool *pgxpool.Pool) error {
	return event.Publish(ctx, pool, event.Event{Type: "order_paid", Environment: "Bench", Context: sample})
}

func publishSQL(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pool.Exec(ctx, `SELECT publish_event('order_paid', $1::jsonb, 'Bench')`, string(sample))
	return err
}

func publishPolled(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pool.Exec(ctx, `INSERT INTO outbox_polled (event_type, environment, event_context) VALUES ('order_paid', 'Bench', $1::json)`, string(sample))
	return err
}

var sample = []byte(`{"order_id":123456,"customer":"e10adc3949ba59abbe56e057f20f883e","total":99.5,"currency":"EUR","items":3,"channel":"web",` +
	`"ip":"192.0.2.17","note":"the quick brown fox jumps over the lazy dog","campaign":"autumn-17"}`)

func produceOnce(ctx context.Context, l *lab, publish func(context.Context, *pgxpool.Pool) error) ([]float64, error) {
	b, err := l.newBed(ctx, "producer")
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	if _, err := b.pool.Exec(ctx, pollingTable); err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(b.url)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = producers
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	stop, err := b.meter(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	counts := make([]int, producers)
	g, work := errgroup.WithContext(ctx)
	for i := range producers {
		g.Go(func() error {
			for time.Since(began) < producerTime {
				if err := publish(work, pool); err != nil {
					return err
				}
				counts[i]++
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	took := time.Since(began)
	c, err := stop()
	if err != nil {
		return nil, err
	}
	n := 0.0
	for _, v := range counts {
		n += float64(v)
	}
	var size int64
	err = pool.QueryRow(ctx, `SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relname LIKE 'outbox%' AND relkind = 'r'`).Scan(&size)
	return []float64{n / took.Seconds(), float64(c.wal) / n, float64(c.cpu.Microseconds()) / n, float64(size) / n}, err
}
