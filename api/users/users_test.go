package users_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/idempotency"
	"diehard/api/users"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
	"diehard/shared/postgres"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var ann = users.NewUser{Email: "Ann@Example.com", FirstName: "Ann", LastName: "O'Hara & Söhne"}

// create creates a user without an idempotency key.
func create(ctx context.Context, s *users.Service, n users.NewUser) (users.User, error) {
	u, _, err := s.Create(ctx, users.Request{User: n})
	return u, err
}

// counts returns the rows of users and outbox.
func counts(t *testing.T, pool *pgxpool.Pool) [2]int {
	t.Helper()
	var n [2]int
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM outbox)").Scan(&n[0], &n[1]))
	return n
}

func TestCreateStoresTheUser(t *testing.T) {
	t.Parallel()
	service := users.New(testenv.New(t).Pool, "Local")
	created, err := create(t.Context(), service, users.NewUser{Email: " Ann@Example.com\n", FirstName: "\tAnn", LastName: ann.LastName})
	require.NoError(t, err)
	assert.Equal(t, ann.Email, created.Email)
	assert.Equal(t, ann.FirstName, created.FirstName)
	assert.Equal(t, ann.LastName, created.LastName)
	assert.True(t, created.IsActive)
	assert.Equal(t, uuid.Version(7), created.ID.Version())
	assert.WithinDuration(t, time.Now(), created.CreatedAt, time.Minute)
	assert.Equal(t, created.CreatedAt, created.UpdatedAt)

	found, err := service.Get(t.Context(), created.ID)
	require.NoError(t, err)
	assert.Equal(t, created, found)

	_, err = service.Get(t.Context(), uuid.New())
	assert.ErrorIs(t, err, users.ErrNotFound)
}

func TestCreateStoresTheEventWithEveryField(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	created, err := create(t.Context(), users.New(env.Pool, "Staging"), ann)
	require.NoError(t, err)

	var (
		id           uuid.UUID
		kind, where  string
		content      string
		version      int64
		at, insertAt time.Time
		trace        *string
	)
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT id, event_type, environment, event_context::text, metadata_version,
		event_date_time, published_at, trace_context FROM outbox`).Scan(&id, &kind, &where, &content, &version, &at, &insertAt, &trace))
	assert.Equal(t, uuid.Version(7), id.Version())
	assert.Equal(t, "user_created", kind)
	assert.Equal(t, "Staging", where)
	assert.Equal(t, int64(1), version)
	assert.True(t, at.Equal(created.CreatedAt))
	assert.WithinDuration(t, time.Now(), insertAt, time.Minute)
	assert.Nil(t, trace)

	var fields map[string]any
	require.NoError(t, json.Unmarshal([]byte(content), &fields))
	stamp := created.CreatedAt.Format(time.RFC3339Nano)
	assert.Equal(t, map[string]any{
		"id": created.ID.String(), "email": ann.Email, "first_name": ann.FirstName, "last_name": ann.LastName,
		"is_active": true, "created_at": stamp, "updated_at": stamp,
	}, fields)
}

func TestSameEmailIsRefusedInAnyCase(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := users.New(env.Pool, "Local")
	_, err := create(t.Context(), service, ann)
	require.NoError(t, err)
	_, err = create(t.Context(), service, users.NewUser{Email: "\u00e4rztin@b\u00fccher.example"})
	require.NoError(t, err)
	for _, email := range []string{
		ann.Email, strings.ToUpper(ann.Email), " " + strings.ToLower(ann.Email),
		"\u00c4rztin@B\u00dccher.example", "a\u0308rztin@bu\u0308cher.example", // whatever the locale of the database
	} {
		_, err := create(t.Context(), service, users.NewUser{Email: email, FirstName: "Other", LastName: "Ann"})
		require.ErrorIs(t, err, users.ErrEmailTaken)
		require.EqualError(t, err, "User with this email already exists")
	}
	assert.Equal(t, [2]int{2, 2}, counts(t, env.Pool), "a refused user has no event")
}

func TestUserGoesWhenTheEventFails(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "ALTER TABLE outbox ADD CONSTRAINT closed CHECK (event_type <> 'user_created')")
	require.NoError(t, err)
	service := users.New(env.Pool, "Local")
	for range 2 { // the second time with prepared statements
		_, err = create(t.Context(), service, ann)
		require.ErrorIs(t, err, event.ErrPublish)
		require.ErrorContains(t, err, "failed to publish event: ")
	}
	assert.Equal(t, [2]int{0, 0}, counts(t, env.Pool))
}

func TestEventGoesWhenTheUserFails(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "ALTER TABLE users ADD CONSTRAINT closed CHECK (first_name <> 'Ann') NOT VALID")
	require.NoError(t, err)
	_, err = create(t.Context(), users.New(env.Pool, "Local"), ann)
	require.Error(t, err)
	require.NotErrorIs(t, err, event.ErrPublish)
	assert.Equal(t, [2]int{0, 0}, counts(t, env.Pool))
}

// A user that fails at commit takes the event along, though both inserts worked.
func TestBothGoWhenTheCommitFails(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), `
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused at commit'; END $$;
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`)
	require.NoError(t, err)
	_, err = create(t.Context(), users.New(env.Pool, "Local"), ann)
	require.ErrorContains(t, err, "refused at commit")
	assert.Equal(t, [2]int{0, 0}, counts(t, env.Pool))
}

func TestInvalidFieldsAreAllNamed(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := users.New(env.Pool, "Local")
	long := strings.Repeat("ü", 101)
	for _, c := range []struct {
		give users.NewUser
		want []users.FieldError
	}{
		{users.NewUser{}, []users.FieldError{{"email", "is required"}}},
		{users.NewUser{Email: " ", FirstName: "\n", LastName: "\t"}, []users.FieldError{{"email", "is required"}}},
		{users.NewUser{Email: "ann", FirstName: "A", LastName: "B"}, []users.FieldError{{"email", "must be an email address"}}},
		{users.NewUser{Email: "ann@b.c" + strings.Repeat("c", 250), FirstName: long, LastName: "B"}, []users.FieldError{
			{"email", "must have at most 254 characters"}, {"first_name", "must have at most 100 characters"},
		}},
		{users.NewUser{Email: "a@b.c", FirstName: "A\x00", LastName: "B\r\nX"}, []users.FieldError{
			{"first_name", "must not contain control characters"}, {"last_name", "must not contain control characters"},
		}},
	} {
		_, err := create(t.Context(), service, c.give)
		var invalid *users.InvalidError
		require.ErrorAs(t, err, &invalid)
		assert.Equal(t, c.want, invalid.Fields)
		assert.NotContains(t, err.Error(), "ann", "values stay out of the message")
	}
	assert.Equal(t, [2]int{0, 0}, counts(t, env.Pool))

	_, err := create(t.Context(), service, users.NewUser{Email: "a@b.cc", FirstName: long[:200], LastName: "李"})
	assert.NoError(t, err, "lengths are in characters")
}

func TestCreateNeedsOneRoundTrip(t *testing.T) {
	t.Parallel()
	pool, writes := testenv.CountingPool(t, testenv.New(t).PostgresURL)
	service := users.New(pool, "Local")
	_, err := create(t.Context(), service, users.NewUser{Email: "first@example.com", FirstName: "A", LastName: "B"})
	require.NoError(t, err, "prepares the statements")

	writes.Store(0)
	_, err = create(t.Context(), service, ann)
	require.NoError(t, err)
	assert.Equal(t, int64(1), writes.Load())
}

func TestCreateWithoutDatabase(t *testing.T) {
	t.Parallel()
	_, err := create(t.Context(), users.New(testenv.Pool(t, testenv.AwayURL, 0), "Local"), ann)
	assert.True(t, postgres.IsUnavailable(err), "%v", err)
}

func TestNamesMayBeEmpty(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	created, err := create(t.Context(), users.New(env.Pool, "Local"), users.NewUser{Email: "a@example.com", FirstName: " "})
	require.NoError(t, err)
	var stored int
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT count(*) FROM public.users JOIN public.outbox ON event_context->>'id' = users.id::text
		WHERE users.id = $1 AND first_name = '' AND last_name = '' AND event_context->>'first_name' = ''`, created.ID).Scan(&stored))
	assert.Equal(t, 1, stored)
}

// A request that is repeated with its key gets the first one's answer.
func TestAKeyCreatesOneUser(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := users.New(env.Pool, "Local")
	request := users.Request{User: ann, Key: idempotency.NewKey("shop", "k"), Digest: idempotency.Digest{1}}
	first, repeated, err := service.Create(t.Context(), request)
	require.NoError(t, err)
	assert.False(t, repeated)
	again, repeated, err := users.New(env.Pool, "Local").Create(t.Context(), request)
	require.NoError(t, err)
	assert.True(t, repeated)
	assert.Equal(t, first, again)

	other := request
	other.Digest = idempotency.Digest{2}
	_, _, err = service.Create(t.Context(), other)
	require.ErrorIs(t, err, idempotency.ErrReused)
	other.Key = idempotency.NewKey("bank", "k")
	_, _, err = service.Create(t.Context(), other)
	require.ErrorIs(t, err, users.ErrEmailTaken, "callers have their own keys")
	assert.Equal(t, [2]int{1, 1}, counts(t, env.Pool))

	other.User.Email = "bea@example.com"
	_, repeated, err = service.Create(t.Context(), other)
	require.NoError(t, err)
	assert.False(t, repeated, "a refused request leaves its key free")

	_, err = env.Pool.Exec(t.Context(), "DELETE FROM public.users WHERE id = $1", first.ID)
	require.NoError(t, err)
	_, _, err = service.Create(t.Context(), request)
	require.ErrorIs(t, err, users.ErrDeleted)
}

func TestARaceOfEqualRequestsCreatesOneUser(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := users.New(env.Pool, "Local")
	var all sync.WaitGroup
	var mu sync.Mutex
	ids, first := map[uuid.UUID]bool{}, 0
	for range 8 {
		all.Go(func() {
			for {
				u, repeated, err := service.Create(t.Context(), users.Request{User: ann, Key: idempotency.NewKey("", "k")})
				if errors.Is(err, idempotency.ErrRunning) {
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				assert.NoError(t, err)
				ids[u.ID] = true
				if !repeated {
					first++
				}
				return
			}
		})
	}
	all.Wait()
	assert.Len(t, ids, 1)
	assert.Equal(t, 1, first)
	assert.Equal(t, [2]int{1, 1}, counts(t, env.Pool))
}
