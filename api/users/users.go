// Package users creates and finds users. Creating one publishes the event
// user_created in the same transaction.
package users

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/api/idempotency"
	"diehard/shared/event"
	"diehard/shared/postgres"
	"diehard/shared/telemetry"
)

// Errors that the client caused. Their texts are for users.
var (
	ErrEmailTaken = errors.New("User with this email already exists")
	ErrNotFound   = errors.New("User not found")
	ErrDeleted    = errors.New("User of this Idempotency-Key no longer exists")
)

const (
	insertUser = `INSERT INTO public.users (id, email, first_name, last_name, is_active, created_at, updated_at, email_key)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	selectUser = `SELECT id, email, first_name, last_name, is_active, created_at, updated_at
		FROM public.users WHERE id = $1`

	emailIndex = "diehard_users_email"
)

// User is a stored user. Times are in UTC and in microseconds, as stored.
type User struct {
	ID        uuid.UUID `json:"id"`
	Email     string    `json:"email"`
	FirstName string    `json:"first_name"`
	LastName  string    `json:"last_name"`
	IsActive  bool      `json:"is_active"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// UserCreated is the event of a new user: the user as it was stored.
type UserCreated User

// Service creates and finds users. Safe for concurrent use.
type Service struct {
	db          postgres.DB
	environment string
	outbox      event.Outbox
}

// New returns a service that stores users in db and publishes their events as
// of environment.
func New(db postgres.DB, environment string) *Service {
	return &Service{db: db, environment: environment}
}

// WithOutbox returns s with its events in outbox; without it they are in that of schema public.
func (s *Service) WithOutbox(outbox event.Outbox) *Service {
	with := *s
	with.outbox = outbox
	return &with
}

// Request is one request to create a user.
type Request struct {
	User   NewUser
	Caller string          // stored with the event as who published it; empty: the login
	Key    idempotency.Key // zero: none
	Digest idempotency.Digest
}

// Create stores a new, active user and its event: both or neither. Spaces around the
// fields are removed. The event carries the trace context of ctx, if any. Without a key
// it needs one round trip; with one, repeated says that an earlier request with the key
// stored the user.
//
// Errors: [*InvalidError] before any query, [ErrEmailTaken], [ErrDeleted],
// [idempotency.ErrRunning], [idempotency.ErrReused], [event.ErrPublish], or those of pgx.
func (s *Service) Create(ctx context.Context, r Request) (u User, repeated bool, err error) {
	n := r.User.trimmed()
	if err := n.validate(); err != nil {
		return User{}, false, err
	}
	user, err := n.user()
	if err != nil {
		return User{}, false, err
	}
	batch, err := s.insert(ctx, user, r.Caller)
	if err != nil {
		return User{}, false, fmt.Errorf("create user: %w", err)
	}
	if r.Key.IsZero() {
		return user, false, send(ctx, s.db, batch)
	}
	// The second statement of Claim must see what was committed before its lock was free.
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	err = pgx.BeginTxFunc(ctx, s.db, options, func(tx pgx.Tx) error {
		before, err := r.Key.Claim(ctx, tx)
		switch {
		case err != nil:
			return err
		case before == nil:
			r.Key.Save(batch, idempotency.Use{Digest: r.Digest, ID: user.ID})
			return send(ctx, tx, batch)
		case before.Digest != r.Digest:
			return idempotency.ErrReused
		}
		repeated = true
		if user, err = get(ctx, tx, before.ID); errors.Is(err, ErrNotFound) {
			return ErrDeleted
		}
		return err
	})
	return user, repeated, err
}

// insert returns the statements for u and its event.
func (s *Service) insert(ctx context.Context, u User, caller string) (*pgx.Batch, error) {
	created, err := event.New(UserCreated(u),
		event.WithTime(u.CreatedAt),
		event.WithEnvironment(s.environment),
		event.WithTraceContext(telemetry.Traceparent(ctx)))
	if err != nil {
		return nil, err
	}
	batch := &pgx.Batch{}
	batch.Queue(insertUser, pgtype.UUID{Bytes: u.ID, Valid: true}, u.Email, u.FirstName, u.LastName, u.IsActive, u.CreatedAt, u.UpdatedAt, emailKey(u.Email))
	outbox := s.outbox
	outbox.PublishedBy = caller
	return batch, outbox.Queue(batch, created)
}

// send sends all statements at once. Outside of a transaction block, PostgreSQL runs
// everything up to the Sync at the end of a batch as one transaction.
// Source: PostgreSQL docs, "Message Flow", Pipelining.
func send(ctx context.Context, db interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}, batch *pgx.Batch,
) error {
	err := db.SendBatch(ctx, batch).Close()
	if isEmailTaken(err) {
		return ErrEmailTaken
	}
	if err != nil {
		return fmt.Errorf("create user: %w", err)
	}
	return nil
}

func isEmailTaken(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == pgerrcode.UniqueViolation && pgErr.ConstraintName == emailIndex
}

// Get returns the user with id, or [ErrNotFound].
func (s *Service) Get(ctx context.Context, id uuid.UUID) (User, error) {
	return get(ctx, s.db, id)
}

func get(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, arguments ...any) pgx.Row
}, id uuid.UUID,
) (u User, err error) {
	err = db.QueryRow(ctx, selectUser, id).
		Scan(&u.ID, &u.Email, &u.FirstName, &u.LastName, &u.IsActive, &u.CreatedAt, &u.UpdatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return User{}, ErrNotFound
	}
	if err != nil {
		return User{}, fmt.Errorf("get user: %w", err)
	}
	u.CreatedAt, u.UpdatedAt = u.CreatedAt.UTC(), u.UpdatedAt.UTC()
	return u, nil
}
