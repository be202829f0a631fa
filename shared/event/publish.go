package event

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrPublish wraps every failure to publish.
var ErrPublish = errors.New("failed to publish event")

// DB is what publishing needs: a pgx.Tx, *pgx.Conn or *pgxpool.Pool; or, by way
// of [SQL], a *sql.Tx, *sql.Conn or *sql.DB.
type DB interface {
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
}

// Outbox is where events are published. The zero value is the one in schema public,
// which the functions of this package use.
type Outbox struct {
	Schema Schema
	// PublishedBy is stored with the events as who published them, for a program that
	// publishes for others. Empty is the login of the session, which is all that producers
	// may store: the login must be a member of diehard_api.
	PublishedBy string
}

// Publish inserts events into the outbox, in order, in one statement: thousands
// at once are fine, and from a thousand on it is a COPY, where pgx is used directly. With
// a transaction they are delivered if and only if it commits; with a pool or a
// connection they are a transaction of their own.
//
// If one event is invalid nothing is sent. Every error wraps [ErrPublish] and
// its cause: [ErrInvalid] or an error of the driver, after which the transaction
// is to be rolled back.
func Publish(ctx context.Context, db DB, events ...Event) error {
	return Outbox{}.Publish(ctx, db, events...)
}

// Publish is [Publish] into o.
func (o Outbox) Publish(ctx context.Context, db DB, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	ready, err := o.prepare(events)
	if err != nil {
		return wrap(err)
	}
	if c, ok := db.(copier); ok && len(ready) >= copyAt && !anyKey(ready) {
		return wrap(o.copy(ctx, c, ready))
	}
	sql, arguments := o.write(formOf(db), ready)
	_, err = db.Exec(ctx, sql, arguments...)
	return wrap(err)
}

// Queue adds the insert of events to batch, so that it travels in one round
// trip with the caller's own statements. A batch sent outside of a transaction
// is one transaction by itself. If an event is invalid nothing is queued. A
// failed insert comes from the batch's results, wrapped as by [Publish]; what
// fails before any statement runs (no connection, no such table) is not wrapped,
// for it is the failure of the whole batch.
func Queue(batch *pgx.Batch, events ...Event) error {
	return Outbox{}.Queue(batch, events...)
}

// Queue is [Queue] into o.
func (o Outbox) Queue(batch *pgx.Batch, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	ready, err := o.prepare(events)
	if err != nil {
		return wrap(err)
	}
	sql, arguments := o.write(forPGX, ready)
	queue(batch, sql, arguments)
	return nil
}

// write returns what publishes events, which are prepared.
func (o Outbox) write(f form, events []Event) (string, []any) {
	if f.takesOne(events) && !anyKey(events) {
		return o.single(&events[0])
	}
	return o.statement(f, events)
}

// prepare returns the events completed, or why one of them cannot be published.
func (o Outbox) prepare(events []Event) ([]Event, error) {
	if o.PublishedBy != "" && anyKey(events) {
		return nil, fmt.Errorf("%w: an event with an IdempotencyKey cannot be published for another", ErrInvalid)
	}
	if problem := textProblem("published_by", o.PublishedBy, MaxPublishedByBytes); problem != "" {
		return nil, fmt.Errorf("%w: %s", ErrInvalid, problem)
	}
	return prepare(events)
}

func queue(batch *pgx.Batch, sql string, arguments []any) {
	batch.Queue(sql, arguments...).Fn = func(results pgx.BatchResults) error {
		_, err := results.Exec()
		return wrap(err)
	}
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrPublish, err)
}
