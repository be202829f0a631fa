package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestPasswordsAreHidden(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgres://app:hunter2@db:5432/app?sslmode=disable":         "postgres://app:xxxxx@db:5432/app?sslmode=disable",
		"postgres://app:h%40nt:er@2@db/app":                          "postgres://app:xxxxx@db/app",
		"postgres://app@db/app":                                      "postgres://app@db/app",
		"postgres://db/app?user=app&password=hunter2&sslmode=prefer": "postgres://db/app?user=app&password=xxxxx&sslmode=prefer",
		"host=db user=app password=hunter2 dbname=app":               "host=db user=app password=xxxxx dbname=app",
		`host=db password='hunter 2 \' x' dbname=app`:                "host=db password=xxxxx dbname=app",
		"connect to postgres://app:hunter2@db:5432/app: refused":     "connect to postgres://app:xxxxx@db:5432/app: refused",
		"sslpassword=hunter2 PASSWORD = hunter2":                     "sslpassword=xxxxx PASSWORD = xxxxx",
		"no secret at all, me@example.com":                           "no secret at all, me@example.com",
	} {
		assert.Equal(t, want, postgres.RedactURL(text))
	}
}

func TestRedactKeepsTheChain(t *testing.T) {
	t.Parallel()
	assert.NoError(t, postgres.Redact(nil))
	cause := errors.New("cause")
	assert.Same(t, cause, postgres.Redact(cause))
	err := postgres.Redact(fmt.Errorf("postgres://app:hunter2@db: %w", cause))
	assert.ErrorIs(t, err, cause)
	assert.EqualError(t, err, "postgres://app:xxxxx@db: cause")
}

func TestBadURLIsExplainedWithoutItsPassword(t *testing.T) {
	t.Parallel()
	for url, says := range map[string]string{
		"postgres://app:hunter2@db:port/app":                                     "invalid port",
		"postgres://app:hunter2/3@db/app":                                        "invalid port", // the password should have been escaped
		"hunter2":                                                                "failed to parse as keyword/value",
		"host=db password=of hunter2 port=1":                                     `missing "=" after "…"`,
		"postgres://app:hunter2%zz@db/app":                                       "invalid percent-encoded token in password",
		"host=db password=hunter2 port=x":                                        "invalid port",
		"postgres://app:hunter2@db/app?sslmode=no":                               "sslmode is invalid",
		"postgres://app:hunter2@db/app?sslmode=verify-ca&sslrootcert=/no/ca.pem": "/no/ca.pem",
	} {
		_, err := postgres.NewPool(t.Context(), postgres.Config{URL: url}, "test")
		require.ErrorContains(t, err, "DATABASE_URL: ")
		assert.ErrorContains(t, err, says)
		assert.ErrorContains(t, err, "; expected: postgres://")
		assert.NotContains(t, err.Error(), "hunter2")
		assert.Equal(t, err, postgres.Config{URL: url}.Validate(), "known before anything is started")
	}
}

func TestPoolFollowsItsConfig(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	pool, err := postgres.NewPool(t.Context(), postgres.Config{URL: env.PostgresURL, MaxConns: 3}, "my-program")
	require.NoError(t, err)
	defer pool.Close()
	var name string
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT current_setting('application_name')").Scan(&name))
	assert.Equal(t, "my-program", name)
	assert.Equal(t, int32(3), pool.Config().MaxConns)
	assert.Equal(t, 5*time.Second, pool.Config().ConnConfig.ConnectTimeout)
}

func TestPoolStartsWhileTheServerIsDown(t *testing.T) {
	t.Parallel()
	pool, err := postgres.NewPool(t.Context(), postgres.Config{URL: "postgres://app:hunter2@127.0.0.1:1/app"}, "test")
	require.NoError(t, err)
	defer pool.Close()
	err = pool.Ping(t.Context())
	assert.True(t, postgres.IsUnavailable(err), "%v", err)
	assert.NotContains(t, err.Error(), "hunter2")
}

func TestUnavailableIsDistinguishedFromMistakes(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for statement, unavailable := range map[string]bool{
		"SELECT 1/0":                                    false,
		"SELECT * FROM missing":                         false,
		"INSERT INTO users VALUES (NULL)":               false,
		"DO $$ BEGIN RAISE SQLSTATE '53300'; END $$":    true, // too many connections
		"DO $$ BEGIN RAISE SQLSTATE '57P03'; END $$":    true, // starting up
		"DO $$ BEGIN RAISE SQLSTATE '25006'; END $$":    true, // a standby
		"SELECT pg_terminate_backend(pg_backend_pid())": true,
		"DO $$ BEGIN RAISE SQLSTATE '57014'; END $$":    true, // canceled
	} {
		_, err := env.Pool.Exec(t.Context(), statement)
		assert.Equal(t, unavailable, postgres.IsUnavailable(err), "%s: %v", statement, err)
	}
	assert.False(t, postgres.IsUnavailable(nil))
	assert.False(t, postgres.IsUnavailable(errors.New("other")))

	late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := env.Pool.Exec(late, "SELECT pg_sleep(9)")
	assert.True(t, postgres.IsUnavailable(err), "%v", err)
}

// A server that closes the connection is unavailable, too.
func TestBrokenConnectionIsUnavailable(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	pool, err := postgres.NewPool(t.Context(), postgres.Config{URL: env.PostgresURL, MaxConns: 1}, "test")
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, pool.AcquireFunc(t.Context(), func(conn *pgxpool.Conn) error {
		return conn.Conn().PgConn().Conn().Close()
	}))
	_, err = pool.Exec(t.Context(), "SELECT 1")
	assert.True(t, postgres.IsUnavailable(err), "%v", err)
}
