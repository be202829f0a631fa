package event

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// ErrPublish wraps every failure of [Publish] and [Queue].
var ErrPublish = errors.New("failed to publish event")

const (
	insertOne = `INSERT INTO public.outbox
		(id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
		VALUES ($1, $2, $3, $4, $5, $6, NULLIF($7::text, ''))`

	insertMany = `INSERT INTO public.outbox
		(id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
		SELECT id, type, at, environment, context, version, NULLIF(trace, '')
		FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::text[], $5::json[], $6::bigint[], $7::text[])
			AS event (id, type, at, environment, context, version, trace)`
)

// DB is what [Publish] needs: a pgx.Tx, *pgx.Conn or *pgxpool.Pool.
type DB interface {
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
}

// Publish inserts events into the outbox, in order, in one round trip. With a
// transaction they are delivered if and only if it commits; with a pool or a
// connection they are a transaction of their own.
//
// If one event is invalid nothing is sent. Every error wraps [ErrPublish] and
// its cause: [ErrInvalid] or an error of pgx, after which the transaction is
// to be rolled back.
func Publish(ctx context.Context, db DB, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	sql, arguments, err := statement(events)
	if err != nil {
		return wrap(err)
	}
	if _, err := db.Exec(ctx, sql, arguments...); err != nil {
		return wrap(err)
	}
	return nil
}

// Queue adds the insert of events to batch, so that it travels in one round
// trip with the caller's own statements. A batch sent outside of a transaction
// is one transaction by itself. If an event is invalid nothing is queued. A
// failed insert comes from the batch's results, wrapped as by [Publish]; what
// fails before any statement runs (no connection, no such table) is not wrapped,
// for it is the failure of the whole batch.
func Queue(batch *pgx.Batch, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	sql, arguments, err := statement(events)
	if err != nil {
		return wrap(err)
	}
	batch.Queue(sql, arguments...).Fn = func(results pgx.BatchResults) error {
		_, err := results.Exec()
		return wrap(err)
	}
	return nil
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrPublish, err)
}

// statement returns the insert of events, at least one.
func statement(events []Event) (string, []any, error) {
	if len(events) > 1 {
		return manyStatement(events)
	}
	e, err := prepared(events[0])
	if err != nil {
		return "", nil, err
	}
	return insertOne, []any{
		pgtype.UUID{Bytes: e.ID, Valid: true},
		e.Type, e.DateTime, e.Environment,
		[]byte(e.Context), e.MetadataVersion, e.TraceContext,
	}, nil
}

func manyStatement(events []Event) (string, []any, error) {
	n := len(events)
	var (
		ids          = make([]pgtype.UUID, n)
		types        = make([]string, n)
		times        = make([]time.Time, n)
		environments = make([]string, n)
		contexts     = make([][]byte, n)
		versions     = make([]int64, n)
		traces       = make([]string, n)
	)
	for i := range events {
		e, err := prepared(events[i])
		if err != nil {
			return "", nil, fmt.Errorf("event %d of %d: %w", i+1, n, err)
		}
		ids[i] = pgtype.UUID{Bytes: e.ID, Valid: true}
		types[i], times[i], environments[i] = e.Type, e.DateTime, e.Environment
		contexts[i], versions[i], traces[i] = e.Context, e.MetadataVersion, e.TraceContext
	}
	return insertMany, []any{ids, types, times, environments, contexts, versions, traces}, nil
}

// prepared returns e completed, or why it cannot be published.
func prepared(e Event) (Event, error) {
	e, err := e.completed()
	if err != nil {
		return e, err
	}
	return e, e.Validate()
}
