package event_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/event"
)

type OrderPaid struct {
	Order  int    `json:"order"`
	Amount string `json:"amount"`
}

func ExampleNew() {
	paid, err := event.New(OrderPaid{Order: 42, Amount: "9.90"}, event.WithEnvironment("Production"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(paid.Type, paid.Environment, string(paid.Context))
	// Output: order_paid Production {"order":42,"amount":"9.90"}
}

// The event is delivered if and only if the transaction commits.
func ExamplePublish() {
	payOrder := func(ctx context.Context, pool *pgxpool.Pool, order int) error {
		paid, err := event.New(OrderPaid{Order: order, Amount: "9.90"})
		if err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "UPDATE orders SET paid = true WHERE id = $1", order); err != nil {
				return err
			}
			return event.Publish(ctx, tx, paid)
		})
	}
	_ = payOrder
}

// Both statements travel together and are one transaction.
func ExampleQueue() {
	payOrder := func(ctx context.Context, pool *pgxpool.Pool, order int) error {
		paid, err := event.New(OrderPaid{Order: order, Amount: "9.90"})
		if err != nil {
			return err
		}
		var batch pgx.Batch
		batch.Queue("UPDATE orders SET paid = true WHERE id = $1", order)
		if err := event.Queue(&batch, paid); err != nil {
			return err
		}
		return pool.SendBatch(ctx, &batch).Close()
	}
	_ = payOrder
}
