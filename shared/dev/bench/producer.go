package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"diehard/shared/event"
)

const (
	producers    = 8
	producerTime = 5 * time.Second
	// many is how many events the ways for many publish at once.
	many = 1000
)

// unchecked shows what the rules for events cost that the outbox checks when one is published.
const unchecked = `; ALTER TABLE outbox DROP CONSTRAINT outbox_event`

var (
	insert   = one(`INSERT INTO outbox (event_type, event_context, environment) VALUES ('order_paid', $1::json, 'Bench')`)
	function = one(`SELECT publish_event('order_paid', $1::jsonb, 'Bench')`)
)

// publishing is a way to publish; it returns how many events it has.
type publishing func(context.Context, *pgxpool.Pool) (int, error)

// producer is what publishing costs the application and its database: eight
// clients, as fast as they can.
func producer(ctx context.Context, env *environment) (*report, error) {
	ways := []struct {
		name    string
		publish publishing
		before  string // what is done to the tables first
		after   string // what delivery does to the rows
	}{
		{"INSERT INTO outbox", insert, "", ""},
		{"INSERT INTO outbox again (A/A control)", insert, "", ""},
		{"INSERT INTO diehard_events", one(`INSERT INTO diehard_events (event_type, event_context, environment) VALUES ('order_paid', $1::json, 'Bench')`), "", ""},
		{"INSERT INTO outbox, unchecked", insert, unchecked, ""},
		{"publish_event(…)", function, "", ""},
		{"publish_event(…), unchecked", function, unchecked, ""},
		{"publish_event_message(…)", one(`SELECT publish_event_message('order_paid', $1::json, 'Bench')`), "", ""},
		{"event.Publish", publishGo(event.Publish, 1), "", ""},
		{"event.PublishMessages", publishGo(event.PublishMessages, 1), "", ""},
		{
			"polled outbox: identity key, status, partial index, update on delivery",
			one(`INSERT INTO outbox_polled (event_type, environment, event_context) VALUES ('order_paid', 'Bench', $1::json)`),
			"", `UPDATE outbox_polled SET status = 'delivered' WHERE status = 'pending'`,
		},
		{"publish_events(…), 1000 a call", publishArray, "", ""},
		{"event.Publish, 1000 a call", publishGo(event.Publish, many), "", ""},
		{"event.PublishMessages, 1000 a call", publishGo(event.PublishMessages, many), "", ""},
		{"COPY, 1000 a call", publishCopy, "", ""},
		{"COPY, 1000 a call, unchecked", publishCopy, unchecked, ""},
	}
	r := newReport("producer", fmt.Sprintf("Publishing: %d clients, one call a transaction, %s", producers, producerTime),
		"events/s", "WAL bytes/event", "PostgreSQL CPU µs/event", "table bytes/event", "dead rows/event")
	for range env.Rounds {
		for _, way := range ways {
			figures, err := produceOnce(ctx, env, way.publish, way.before, way.after)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", way.name, err)
			}
			env.progress("%s: %.0f events/s", way.name, figures[0])
			r.add(way.name, figures...)
		}
	}
	return r, nil
}

// one publishes an event by a statement.
func one(sql string) publishing {
	return func(ctx context.Context, pool *pgxpool.Pool) (int, error) {
		_, err := pool.Exec(ctx, sql, string(sample))
		return 1, err
	}
}

func publishGo(publish func(context.Context, event.DB, ...event.Event) error, n int) publishing {
	events := make([]event.Event, n)
	for i := range events {
		events[i] = event.Event{Type: "order_paid", Environment: "Bench", Context: sample}
	}
	return func(ctx context.Context, pool *pgxpool.Pool) (int, error) { return n, publish(ctx, pool, events...) }
}

func publishArray(ctx context.Context, pool *pgxpool.Pool) (int, error) {
	e := `{"event_type":"order_paid","environment":"Bench","event_context":` + string(sample) + `}`
	_, err := pool.Exec(ctx, `SELECT publish_events($1::json)`, "["+strings.Repeat(e+",", many-1)+e+"]")
	return many, err
}

func publishCopy(ctx context.Context, pool *pgxpool.Pool) (int, error) {
	row := func(int) ([]any, error) { return []any{"order_paid", "Bench", sample}, nil }
	n, err := pool.CopyFrom(ctx, pgx.Identifier{event.Table}, []string{"event_type", "environment", "event_context"}, pgx.CopyFromSlice(many, row))
	return int(n), err
}

var sample = []byte(`{"order_id":123456,"customer":"e10adc3949ba59abbe56e057f20f883e","total":99.5,"currency":"EUR","items":3,"channel":"web",` +
	`"ip":"192.0.2.17","note":"the quick brown fox jumps over the lazy dog","campaign":"autumn-17"}`)

func produceOnce(ctx context.Context, env *environment, publish publishing, before, after string) ([]float64, error) {
	b, err := env.newTestbed(ctx, "producer")
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	// Messages are accepted, although no streamer reads them here.
	const reader = `; INSERT INTO diehard_slot (slot_name, messages) VALUES ('bench', true)`
	if _, err := b.pool.Exec(ctx, pollingTable+reader+before); err != nil {
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
	stop, err := b.meter(ctx, "%outbox%")
	if err != nil {
		return nil, err
	}
	began := time.Now()
	counts := make([]int, producers)
	g, work := errgroup.WithContext(ctx)
	for i := range producers {
		g.Go(func() error {
			for time.Since(began) < producerTime {
				n, err := publish(work, pool)
				if err != nil {
					return err
				}
				counts[i] += n
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	took := time.Since(began)
	if _, err := pool.Exec(ctx, after); err != nil {
		return nil, err
	}
	c, err := stop()
	if err != nil {
		return nil, err
	}
	n := 0.0
	for _, v := range counts {
		n += float64(v)
	}
	var size int64
	err = pool.QueryRow(ctx, `SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relname LIKE '%outbox%' AND relkind = 'r'`).Scan(&size)
	return []float64{n / took.Seconds(), float64(c.wal) / n, float64(c.cpu.Microseconds()) / n, float64(size) / n, float64(c.dead) / n}, err
}
