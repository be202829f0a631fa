// Command watermill carries events from watermill-sql's PostgreSQL outbox to ClickHouse, as
// a contestant of `make bench BENCH=peers`. A subscriber of watermill gets the next message
// when it has acknowledged the one before: with PEER_BATCHED a message is acknowledged before
// its batch is inserted, otherwise each is inserted alone and then acknowledged.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "watermill:", err)
		os.Exit(1)
	}
}

const (
	batchRows     = 50_000
	flushInterval = 200 * time.Millisecond
)

func run(ctx context.Context) error {
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	subscriber, err := sql.NewSubscriber(sql.BeginnerFromPgx(pool), sql.SubscriberConfig{
		ConsumerGroup:    "clickhouse",
		PollInterval:     flushInterval,
		SchemaAdapter:    sql.DefaultPostgreSQLSchema{SubscribeBatchSize: 1000},
		OffsetsAdapter:   sql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, watermill.NewSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))))
	if err != nil {
		return err
	}
	messages, err := subscriber.Subscribe(ctx, "events")
	if err != nil {
		return err
	}
	ch, err := clickhouse.Open(&clickhouse.Options{
		Addr: []string{os.Getenv("CLICKHOUSE_HOST") + ":" + os.Getenv("CLICKHOUSE_PORT")},
		Auth: clickhouse.Auth{Database: os.Getenv("CLICKHOUSE_SCHEMA"), Username: os.Getenv("CLICKHOUSE_USER"), Password: os.Getenv("CLICKHOUSE_PASSWORD")},
	})
	if err != nil {
		return err
	}
	if os.Getenv("PEER_BATCHED") == "" {
		return carryEach(ctx, ch, messages)
	}
	return carry(ctx, ch, messages)
}

// carryEach inserts each message and acknowledges it then.
func carryEach(ctx context.Context, ch driver.Conn, messages <-chan *message.Message) error {
	for m := range messages {
		if err := insert(ctx, ch, []string{m.UUID}, []string{string(m.Payload)}); err != nil {
			return err
		}
		m.Ack()
	}
	return nil
}

// carry inserts what has come, by rows and by time.
func carry(ctx context.Context, ch driver.Conn, messages <-chan *message.Message) error {
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	var ids, payloads []string
	flush := func() error {
		if len(ids) == 0 {
			return nil
		}
		err := insert(ctx, ch, ids, payloads)
		ids, payloads = ids[:0], payloads[:0]
		return err
	}
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return flush()
			}
			ids, payloads = append(ids, m.UUID), append(payloads, string(m.Payload))
			m.Ack()
			if len(ids) < batchRows {
				continue
			}
		case <-tick.C:
		}
		if err := flush(); err != nil {
			return err
		}
	}
}

func insert(ctx context.Context, ch driver.Conn, ids, payloads []string) error {
	batch, err := ch.PrepareBatch(ctx, "INSERT INTO peer_log (id, event_context)")
	if err != nil {
		return err
	}
	for i, column := range []any{ids, payloads} {
		if err := batch.Column(i).Append(column); err != nil {
			return err
		}
	}
	return batch.Send()
}
