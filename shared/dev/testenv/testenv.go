// Package testenv gives each test its own PostgreSQL database, ClickHouse
// database and slot name on real servers, so that tests run in parallel.
//
// TEST_BACKEND says which servers:
//
//   - embedded (default): engines of package embedded, shared by all test
//     programs of the checkout and found again by the next run. make test stops
//     them at its end, make down at any time.
//   - external: the servers of DATABASE_URL (a superuser) and CLICKHOUSE_HOST.
//   - containers: Docker containers, shared in the same way.
//
// Tests that stop, kill or freeze an engine start a private one with
// StartPostgres or StartClickHouse.
package testenv

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/url"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/await"
)

// Publication is created by the migrations in every database.
const Publication = "outbox_pub"

// Env is what one test has for itself. All of it is migrated, and dropped when
// the test ends.
type Env struct {
	PostgresURL      string // of the test's database, as superuser
	Pool             *pgxpool.Pool
	ClickHouse       clickhouse.Conn // to the test's database
	ClickHouseConfig clickhouse.Config
	Slot             string // a name for a replication slot; not created yet
	Publication      string
}

// Main runs the tests of a package and fails if they leak goroutines. Call it
// from TestMain; it does not return.
func Main(m *testing.M, options ...goleak.Option) {
	goleak.VerifyTestMain(m, options...)
}

// New makes an environment for t. Replication slots of its database, whatever
// their names, are dropped when the test ends, with their walsenders.
func New(t testing.TB) *Env {
	t.Helper()
	servers := servers(t)
	name := "test_" + randomName()
	env := &Env{Slot: name, Publication: Publication}
	env.PostgresURL = servers.createPostgres(t, name)
	env.ClickHouseConfig = servers.createClickHouse(t, name)

	env.Pool = Pool(t, env.PostgresURL, 0)
	_, err := env.Pool.Exec(t.Context(), "SELECT outbox_create_partitions()") // the template may be of yesterday
	require.NoError(t, err)
	env.ClickHouse, err = clickhouse.Open(t.Context(), env.ClickHouseConfig)
	require.NoError(t, err)
	t.Cleanup(func() { _ = env.ClickHouse.Close() })
	return env
}

// Major is PostgreSQL's major version.
func (e *Env) Major(t testing.TB) (major int) {
	t.Helper()
	require.NoError(t, e.Pool.QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int / 10000").Scan(&major))
	return major
}

// Environ returns the environment for Die Hard's programs to use this test's
// databases: only the variables set here, and PATH and the like. Append more;
// later ones win.
func (e *Env) Environ() []string {
	environ := []string{
		"DATABASE_URL=" + e.PostgresURL,
		"REPLICATION_SLOT=" + e.Slot,
		"REPLICATION_PUBLICATION=" + e.Publication,
	}
	environ = append(environ, ClickHouseEnviron(e.ClickHouseConfig)...)
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "GOCOVERDIR", "GORACE"} {
		if value, ok := os.LookupEnv(name); ok {
			environ = append(environ, name+"="+value)
		}
	}
	return environ
}

// AsUser returns the connection string of another user of the same database.
func AsUser(t testing.TB, databaseURL, user, password string) string {
	t.Helper()
	address, err := url.Parse(databaseURL)
	require.NoError(t, err)
	address.User = url.UserPassword(user, password)
	return address.String()
}

// randomName is unique among all tests on the servers.
func randomName() string {
	var raw [6]byte
	_, _ = rand.Read(raw[:]) // never fails
	return hex.EncodeToString(raw[:])
}

// cleanupContext is for use in t.Cleanup, where t.Context() is over.
func cleanupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), await.Limit)
}

// AllowOutOfRange drops the constraint of the outbox, so that a test can publish
// rows that become dead letters.
func (e *Env) AllowOutOfRange(t testing.TB) {
	t.Helper()
	_, err := e.Pool.Exec(t.Context(), "ALTER TABLE outbox DROP CONSTRAINT outbox_event")
	require.NoError(t, err)
}
