package event_test

import (
	"context"
	"database/sql"
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

// With database/sql, whatever the driver.
func ExampleSQL() {
	payOrder := func(ctx context.Context, db *sql.DB, order int) error {
		paid, err := event.New(OrderPaid{Order: order, Amount: "9.90"})
		if err != nil {
			return err
		}
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if _, err := tx.ExecContext(ctx, "UPDATE orders SET paid = true WHERE id = $1", order); err != nil {
			return err
		}
		if err := event.Publish(ctx, event.SQL(tx), paid); err != nil {
			return err
		}
		return tx.Commit()
	}
	_ = payOrder
}

// Events with a key keep their order if several streamers share the work.
func ExampleWithKey() {
	first, _ := event.New(OrderPaid{Order: 42}, event.WithKey("order 42"))
	second, _ := event.New(OrderPaid{Order: 42}, event.WithKey("order 42"))
	fmt.Println(first.ID == second.ID, first.ID[15] == second.ID[15])
	// Output: false true
}
