// Package events publishes the events of other programs: all of a request or
// none, and once per idempotency key.
package events

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"diehard/api/idempotency"
	"diehard/shared/event"
	"diehard/shared/postgres"
	"diehard/shared/telemetry"
)

// MaxEvents is the maximum number of events per request.
const MaxEvents = 100_000

// ErrTooMany is an error of the client.
var ErrTooMany = fmt.Errorf("more than %d events in one request", MaxEvents)

// Source returns the events of a request in order, then io.EOF. After any other
// error none of the events is stored.
type Source interface {
	Next() (NewEvent, error)
}

// Request is one request to publish events.
type Request struct {
	Source Source
	Caller string          // stored with the events as who published them; empty: the login
	Key    idempotency.Key // zero: none
	// Digest is called if there is a Key, after Source has returned io.EOF.
	Digest func() idempotency.Digest
}

// Result is the outcome of a request.
type Result struct {
	IDs      []uuid.UUID // of the events, in order
	Repeated bool        // an earlier request with the same key stored them
}

// Service publishes events. Safe for concurrent use.
type Service struct {
	db          postgres.DB
	environment string
	outbox      event.Outbox
}

// New returns a service that publishes to db. environment is that of events
// without one.
func New(db postgres.DB, environment string) *Service {
	return &Service{db: db, environment: environment}
}

// WithOutbox returns s that publishes into outbox; without it into that of schema public.
func (s *Service) WithOutbox(outbox event.Outbox) *Service {
	with := *s
	with.outbox = outbox
	return &with
}

// Publish stores the events of r in one transaction. Memory is bounded by the
// size of a chunk, not by the number of events. A request of one chunk without a
// key needs one round trip; one of several holds a connection while r.Source is read.
//
// With an error the result has the events read so far. Errors:
// [*InvalidError], [ErrTooMany], [idempotency.ErrRunning],
// [idempotency.ErrReused], those of r.Source, [event.ErrPublish], or those of pgx.
func (s *Service) Publish(ctx context.Context, r Request) (Result, error) {
	in, err := newReader(r.Source, s.environment, telemetry.Traceparent(ctx))
	if err != nil {
		return Result{}, err
	}
	repeated, err := s.publish(ctx, r, in)
	return Result{IDs: in.ids, Repeated: repeated}, err
}

func (s *Service) publish(ctx context.Context, r Request, in *reader) (repeated bool, err error) {
	if err := in.read(); err != nil {
		return false, err
	}
	if in.ended && r.Key.IsZero() {
		return false, in.refused(s.outboxOf(r).Publish(ctx, s.db, in.chunk...))
	}
	// The second statement of Claim must see what was committed before its lock was free.
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	err = pgx.BeginTxFunc(ctx, s.db, options, func(tx pgx.Tx) error {
		if r.Key.IsZero() {
			return in.publish(ctx, tx, s.outboxOf(r))
		}
		repeated, err = s.publishIdempotent(ctx, tx, r, in)
		return err
	})
	return repeated, err
}

// outboxOf returns the outbox for the events of r's caller.
func (s *Service) outboxOf(r Request) event.Outbox {
	outbox := s.outbox
	outbox.PublishedBy = r.Caller
	return outbox
}

// publishIdempotent publishes the events unless an earlier request with the key did.
func (s *Service) publishIdempotent(ctx context.Context, tx pgx.Tx, r Request, in *reader) (repeated bool, err error) {
	before, err := r.Key.Claim(ctx, tx)
	if err != nil {
		return false, err
	}
	if before == nil {
		if err := in.publish(ctx, tx, s.outboxOf(r)); err != nil {
			return false, err
		}
		var batch pgx.Batch
		r.Key.Save(&batch, idempotency.Use{Digest: r.Digest(), ID: in.first})
		if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
			return false, fmt.Errorf("save idempotency key: %w", err)
		}
		return false, nil
	}
	if err := in.drain(); err != nil {
		return false, err
	}
	if before.Digest != r.Digest() {
		return false, idempotency.ErrReused
	}
	in.renumber(before.ID)
	return true, nil
}

// publish inserts the current chunk and all that follow.
func (in *reader) publish(ctx context.Context, tx pgx.Tx, outbox event.Outbox) error {
	for {
		if err := in.refused(outbox.Publish(ctx, tx, in.chunk...)); err != nil {
			return err
		}
		if in.ended {
			return nil
		}
		if err := in.read(); err != nil {
			return err
		}
	}
}

// drain reads the remaining events, for their ids.
func (in *reader) drain() error {
	for !in.ended {
		if err := in.read(); err != nil {
			return err
		}
	}
	return nil
}

// isEnd reports whether err is the end of a source.
func isEnd(err error) bool { return errors.Is(err, io.EOF) }
