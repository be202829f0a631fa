// Package events takes the events of other programs and publishes them: all of
// a request or none, once for each idempotency key.
package events

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/event"
	"diehard/shared/telemetry"
)

// MaxEvents is how many events a request may have.
const MaxEvents = 100_000

// Errors that are answers, not failures.
var (
	ErrTooMany    = fmt.Errorf("more than %d events in one request", MaxEvents)
	ErrKeyRunning = errors.New("a request with this idempotency key is still running")
	ErrKeyReused  = errors.New("this idempotency key was used for another request")
	ErrBusy       = errors.New("too many large requests at a time")
)

// Source yields the events of a request in their order, io.EOF after the last.
// Any other error ends the request, and none of its events is stored.
type Source interface {
	Next() (NewEvent, error)
}

// Request is one request to publish events.
type Request struct {
	Source Source
	Caller string // whose idempotency keys these are
	Key    string // idempotency key; empty: none
	// Digest is the SHA-256 of all that was sent. It is asked for if there is a
	// Key, once Source has ended.
	Digest func() [32]byte
}

// Receipt is what became of a request.
type Receipt struct {
	IDs      []uuid.UUID // of the events, in their order
	Repeated bool        // an earlier request with the same key had stored them
}

// Service is the use case. Safe for concurrent use.
type Service struct {
	db          *pgxpool.Pool
	environment string
	large       chan struct{} // a place for each large request at work
}

// New returns a service that publishes to db, as of environment where an event
// says nothing else. Large requests, which hold a connection while their body
// arrives, take at most half of db's connections.
func New(db *pgxpool.Pool, environment string) *Service {
	return &Service{db: db, environment: environment, large: make(chan struct{}, max(1, db.Config().MaxConns/2))}
}

// Accept stores the events of r in one transaction. Memory is bounded by the
// chunks in which they are sent, not by their number. A request of one chunk and
// without a key needs one round trip.
//
// The receipt has the events read so far also when there is an error:
// [*InvalidError], [ErrTooMany], [ErrKeyRunning], [ErrKeyReused], [ErrBusy],
// those of r.Source, [event.ErrPublish], or those of pgx.
func (s *Service) Accept(ctx context.Context, r Request) (Receipt, error) {
	in, err := newIntake(r.Source, s.environment, telemetry.Traceparent(ctx))
	if err != nil {
		return Receipt{}, err
	}
	repeated, err := s.accept(ctx, r, in)
	return Receipt{IDs: in.ids, Repeated: repeated}, err
}

func (s *Service) accept(ctx context.Context, r Request, in *intake) (repeated bool, err error) {
	if err := in.read(); err != nil {
		return false, err
	}
	if in.ended && r.Key == "" {
		return false, event.Publish(ctx, s.db, in.chunk...)
	}
	if !in.ended { // from here on the connection waits for the client
		select {
		case s.large <- struct{}{}:
			defer func() { <-s.large }()
		default:
			return false, ErrBusy
		}
	}
	// The claim of a key must see what was committed before its lock was free.
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	err = pgx.BeginTxFunc(ctx, s.db, options, func(tx pgx.Tx) error {
		if r.Key == "" {
			return in.publish(ctx, tx)
		}
		repeated, err = once(ctx, tx, r, in)
		return err
	})
	return repeated, err
}

// once publishes unless a request with the same key did.
func once(ctx context.Context, tx pgx.Tx, r Request, in *intake) (repeated bool, err error) {
	key := keyOf(r.Caller, r.Key)
	before, err := key.claim(ctx, tx)
	if err != nil {
		return false, err
	}
	if before == nil {
		if err := in.publish(ctx, tx); err != nil {
			return false, err
		}
		return false, key.keep(ctx, tx, r.Digest(), in.first)
	}
	if err := in.drain(); err != nil {
		return false, err
	}
	if before.request != r.Digest() {
		return false, ErrKeyReused
	}
	in.renumber(before.first)
	return true, nil
}

// publish sends the chunk at hand and all that follow.
func (in *intake) publish(ctx context.Context, tx pgx.Tx) error {
	for {
		if err := event.Publish(ctx, tx, in.chunk...); err != nil {
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

// drain reads what is left, for its ids.
func (in *intake) drain() error {
	for !in.ended {
		if err := in.read(); err != nil {
			return err
		}
	}
	return nil
}

// isEnd tells whether err is a source's end.
func isEnd(err error) bool { return errors.Is(err, io.EOF) }
