package crash_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"diehard/shared/event"
)

// shape writes a transaction and returns its outcome. An error is why it did not commit.
type shape func(p *producer, ctx context.Context, tx *transaction) (outcome, error)

var shapes = []choice[shape]{
	{250, (*producer).writeOne},
	{150, (*producer).writeDirect},
	{150, (*producer).writeFunction},
	{180, (*producer).writeSeveral},
	{120, (*producer).writeMessages},
	{120, (*producer).writeMixed},
	{60, (*producer).writeQueued},
	{80, (*producer).writeRollback},
	{60, (*producer).writeSavepoint},
	{40, (*producer).writeAndDelete},
	{2, (*producer).writeInfinite},
	{2, (*producer).writeMalformed},
}

// seldom is a shape for one producer alone, now and then: the first one soon.
type seldom struct {
	shape        shape
	soon, pauses [2]time.Duration // from, to
}

var seldoms = map[uint8]seldom{
	0: {(*producer).writeLarge, [2]time.Duration{3 * time.Second, 6 * time.Second}, [2]time.Duration{15 * time.Second, 30 * time.Second}},
	// A refusal costs the streamer a dozen inserts.
	1: {(*producer).writeRefused, [2]time.Duration{time.Second, 3 * time.Second}, [2]time.Duration{8 * time.Second, 16 * time.Second}},
}

// commit runs do in a transaction. Whatever fails before the COMMIT is sent is a
// rollback for sure; a COMMIT without an answer is unknown.
func (p *producer) commit(ctx context.Context, do func(tx pgx.Tx) error) (outcome, error) {
	tx, err := p.conn.Begin(ctx)
	if err != nil {
		return rolledBack, err
	}
	if err := do(tx); err != nil {
		_ = tx.Rollback(ctx) // the connection may be gone
		return rolledBack, err
	}
	switch err := tx.Commit(ctx); {
	case err == nil:
		return committed, nil
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return rolledBack, err
	default:
		return unknown, err
	}
}

// alone is the outcome of a statement that is a transaction by itself.
func alone(err error) (outcome, error) {
	if err == nil {
		return committed, nil
	}
	return unknown, err
}

func (p *producer) writeOne(ctx context.Context, t *transaction) (outcome, error) {
	return p.commit(ctx, func(tx pgx.Tx) error { return event.Publish(ctx, tx, p.next(t, stays)) })
}

func (p *producer) writeDirect(ctx context.Context, t *transaction) (outcome, error) {
	return alone(event.Publish(ctx, p.conn, p.next(t, stays)))
}

func (p *producer) writeFunction(ctx context.Context, t *transaction) (outcome, error) {
	e := p.next(t, stays)
	_, err := p.conn.Exec(ctx, "SELECT publish_event($1, $2, event_id => $3)", e.Type, e.Context, e.ID)
	return alone(err)
}

func (p *producer) writeSeveral(ctx context.Context, t *transaction) (outcome, error) {
	return p.commit(ctx, func(tx pgx.Tx) error { return event.Publish(ctx, tx, p.several(t, 2+p.rng.IntN(30))...) })
}

func (p *producer) writeQueued(ctx context.Context, t *transaction) (outcome, error) {
	var batch pgx.Batch
	for range 1 + p.rng.IntN(3) {
		if err := event.Queue(&batch, p.several(t, 1+p.rng.IntN(4))...); err != nil {
			return rolledBack, err
		}
	}
	return alone(p.conn.SendBatch(ctx, &batch).Close())
}

func (p *producer) writeRollback(ctx context.Context, t *transaction) (outcome, error) {
	tx, err := p.conn.Begin(ctx)
	if err != nil {
		return rolledBack, err
	}
	err = event.Publish(ctx, tx, p.several(t, 1+p.rng.IntN(10))...)
	return rolledBack, errors.Join(err, tx.Rollback(ctx))
}

// writeSavepoint rolls back to one savepoint and releases another.
func (p *producer) writeSavepoint(ctx context.Context, t *transaction) (outcome, error) {
	return p.commit(ctx, func(tx pgx.Tx) error {
		if err := event.Publish(ctx, tx, p.next(t, stays)); err != nil {
			return err
		}
		for _, f := range []fate{undone, stays} {
			nested, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			for range 1 + p.rng.IntN(5) {
				if err := event.Publish(ctx, nested, p.next(t, f)); err != nil {
					return err
				}
			}
			end := nested.Commit
			if f == undone {
				end = nested.Rollback
			}
			if err := end(ctx); err != nil {
				return err
			}
		}
		return event.Publish(ctx, tx, p.next(t, stays))
	})
}

// writeAndDelete keeps nothing of an event in the outbox but its place in the WAL.
func (p *producer) writeAndDelete(ctx context.Context, t *transaction) (outcome, error) {
	return p.commit(ctx, func(tx pgx.Tx) error {
		if err := event.Publish(ctx, tx, p.next(t, stays)); err != nil {
			return err
		}
		e := p.next(t, deleted)
		var partition, at string
		err := tx.QueryRow(ctx, `INSERT INTO outbox (id, event_type, event_context) VALUES ($1, $2, $3)
			RETURNING tableoid::regclass::text, ctid::text`, e.ID, e.Type, e.Context).Scan(&partition, &at)
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, "DELETE FROM "+partition+" WHERE ctid = $1::tid", at)
		if err == nil && tag.RowsAffected() != 1 {
			err = fmt.Errorf("deleted %d rows of %s", tag.RowsAffected(), partition)
		}
		return err
	})
}

// writeInfinite has a row among others that ClickHouse's types cannot hold.
func (p *producer) writeInfinite(ctx context.Context, t *transaction) (outcome, error) {
	return p.commit(ctx, func(tx pgx.Tx) error {
		if err := event.Publish(ctx, tx, p.next(t, stays)); err != nil {
			return err
		}
		e := p.poison(t)
		_, err := tx.Exec(ctx, `INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ($1, $2, 'infinity', $3)`,
			e.ID, e.Type, e.Context)
		if err != nil {
			return err
		}
		return event.Publish(ctx, tx, p.next(t, stays))
	})
}

// writeRefused has a row among others that a constraint in ClickHouse refuses.
func (p *producer) writeRefused(ctx context.Context, t *transaction) (outcome, error) {
	return p.commit(ctx, func(tx pgx.Tx) error {
		events := p.several(t, 3)
		refused := p.poison(t)
		refused.Type = refusedType
		return event.Publish(ctx, tx, append(events, refused, p.next(t, stays))...)
	})
}

func (p *producer) poison(t *transaction) event.Event {
	e := p.next(t, stays)
	t.entries[len(t.entries)-1].poison, t.entries[len(t.entries)-1].fleeting = true, false
	e.Type = "order_refunded"
	return e
}

// writeLarge is a transaction of tens of thousands of rows; one in five is rolled back.
func (p *producer) writeLarge(ctx context.Context, t *transaction) (outcome, error) {
	n := uint32((10_000 + p.rng.IntN(20_000)) * p.w.rate / defaultRate)
	first := p.number + 1
	for range n {
		p.number++
		t.entries = append(t.entries, entry{number: p.number, poison: int(p.number%100) < p.w.bad})
	}
	prefix := p.w.idPrefix(p.index).String()[:28]
	insert := func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO outbox (id, event_type, event_context)
			SELECT ($1 || lpad(to_hex(n), 8, '0'))::uuid, CASE WHEN n % 100 < $5 THEN $6 ELSE 'order_archived' END,
				json_build_object('producer', $2::int, 'number', n)
			FROM generate_series($3::bigint, $4::bigint) AS n`, prefix, p.index, first, p.number, p.w.bad, refusedType)
		return err
	}
	if p.rng.IntN(5) > 0 {
		return p.commit(ctx, insert)
	}
	tx, err := p.conn.Begin(ctx)
	if err != nil {
		return rolledBack, err
	}
	return rolledBack, errors.Join(insert(tx), tx.Rollback(ctx))
}
