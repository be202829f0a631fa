// Package users creates and finds users. Creating one publishes the event
// user_created in the same transaction.
package users

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/event"
	"diehard/shared/telemetry"
)

// Errors that are answers, not failures. Their texts are for users.
var (
	ErrEmailTaken = errors.New("User with this email already exists")
	ErrNotFound   = errors.New("User not found")
)

const (
	insertUser = `INSERT INTO public.users (id, email, first_name, last_name, is_active, created_at, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`
	selectUser = `SELECT id, email, first_name, last_name, is_active, created_at, updated_at
		FROM public.users WHERE id = $1`

	uniqueViolation = "23505"
	emailIndex      = "users_email_key"
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

// Service is the use case. Safe for concurrent use.
type Service struct {
	db          *pgxpool.Pool
	environment string
}

// New returns a service that stores users in db and publishes their events as
// of environment.
func New(db *pgxpool.Pool, environment string) *Service {
	return &Service{db: db, environment: environment}
}

// Create stores a new, active user and its event: both or neither, in one round
// trip. Spaces around the fields are dropped. The event carries the trace of
// ctx, if there is one.
//
// Errors: [*InvalidError] before the database is asked, [ErrEmailTaken],
// [event.ErrPublish], or those of pgx.
func (s *Service) Create(ctx context.Context, n NewUser) (User, error) {
	n = n.trimmed()
	if err := n.validate(); err != nil {
		return User{}, err
	}
	user, err := n.user()
	if err != nil {
		return User{}, err
	}
	created, err := event.New(UserCreated(user),
		event.WithTime(user.CreatedAt),
		event.WithEnvironment(s.environment),
		event.WithTraceContext(telemetry.Traceparent(ctx)))
	if err != nil {
		return User{}, fmt.Errorf("create user: %w", err)
	}
	if err := s.insert(ctx, user, created); err != nil {
		return User{}, err
	}
	return user, nil
}

// insert sends both statements at once. Outside of a transaction, PostgreSQL
// makes everything up to the one Sync at the end of a batch one transaction.
// Source: PostgreSQL docs, "Message Flow", Pipelining.
func (s *Service) insert(ctx context.Context, u User, created event.Event) error {
	var batch pgx.Batch
	batch.Queue(insertUser, pgtype.UUID{Bytes: u.ID, Valid: true}, u.Email, u.FirstName, u.LastName, u.IsActive, u.CreatedAt, u.UpdatedAt)
	if err := event.Queue(&batch, created); err != nil {
		return fmt.Errorf("create user: %w", err)
	}
	err := s.db.SendBatch(ctx, &batch).Close()
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
	return ok && pgErr.Code == uniqueViolation && pgErr.ConstraintName == emailIndex
}

// Get returns the user with id, or [ErrNotFound].
func (s *Service) Get(ctx context.Context, id uuid.UUID) (User, error) {
	var u User
	err := s.db.QueryRow(ctx, selectUser, id).
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
