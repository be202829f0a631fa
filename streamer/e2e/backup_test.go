package e2e

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// The runbooks of docker/README.md, "Backup and restore" and "A major version of
// PostgreSQL", with the logins of docker/postgres/roles.sql: the dump of a server goes into
// an empty one of another version. Either ClickHouse is kept, or it is restored as well.
func TestABackupIsRestored(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"ClickHouse is kept": false, "ClickHouse is lost, too": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			old, engine := containerServer(t, *newEnv(t), "14")
			migrate := runArgs(t, old, "streamer", []string{"migrate", "up"}, as(t, old, "migrator"))
			require.Zero(t, migrate.exit(), migrate.log.text())
			s := run(t, old, "streamer", as(t, old, "streamer"))
			publish(t, old, 5)
			delivered(t, old)
			command(t, old, "CREATE TABLE LOG_backup ENGINE = MergeTree ORDER BY event_id AS SELECT * FROM LOG")
			publish(t, old, 2)
			delivered(t, old)
			dump := filepath.Join(t.TempDir(), "diehard.dump")
			client(t, "pg_dump", "--format=custom", "--file="+dump, old.PostgresURL)
			publish(t, old, 3) // PostgreSQL loses these
			awaitRows(t, old, 10)
			s.kill()
			require.NoError(t, engine.Stop(t.Context()))

			env, _ := containerServer(t, *old, embedded.DefaultPostgresVersion)
			client(t, "pg_restore", "--dbname="+env.PostgresURL, "--clean", "--if-exists", dump)
			migrate = runArgs(t, env, "streamer", []string{"migrate", "up"}, as(t, env, "migrator"))
			require.Zero(t, migrate.exit(), migrate.log.text())
			s = run(t, env, "streamer", as(t, env, "streamer"), "CLICKHOUSE_INSERT_TIMEOUT=1s")
			assert.Contains(t, fmt.Sprint(s.says("the streamer cannot run")["error"]), "streamer slot create")
			create := runArgs(t, env, "streamer", []string{"slot", "create"}, as(t, env, "streamer"))
			require.Zero(t, create.exit(), create.log.text())
			missing := 0
			if lost {
				missing = 2
				command(t, env, "TRUNCATE TABLE LOG")
				command(t, env, "INSERT INTO LOG SELECT * FROM LOG_backup")
			}
			replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"}, as(t, env, "streamer"))
			require.Zero(t, replay.exit(), replay.log.text())
			assert.Contains(t, replay.log.text(), fmt.Sprintf("%d were missing", missing))
			publish(t, env, 4)
			if lost {
				assert.Equal(t, 11, delivered(t, env))
			} else {
				awaitRows(t, env, 14)
				assert.Equal(t, 14, count(t, env, "uniqExact(event_id)", ""))
			}
		})
	}
}

// containerServer gives t a server as the first start of a container leaves it: with
// the roles and without tables.
func containerServer(t testing.TB, env testenv.Env, version string) (*testenv.Env, *embedded.Postgres) {
	t.Helper()
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{Database: "diehard", Version: version})
	env.PostgresURL = engine.URL("diehard")
	client(t, "psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--file=../../docker/postgres/roles.sql", env.PostgresURL)
	env.Pool = testenv.Pool(t, env.PostgresURL, 4)
	return &env, engine
}

// as is the address of env for a login of roles.sql.
func as(t testing.TB, env *testenv.Env, login string) string {
	t.Helper()
	address, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	address.User = url.UserPassword(login, "secret")
	return "DATABASE_URL=" + address.String()
}

// client runs a program of PostgreSQL's.
func client(t testing.TB, name string, arguments ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	cmd := exec.CommandContext(t.Context(), name, arguments...)
	cmd.Env = os.Environ()
	for _, login := range []string{"MIGRATOR", "API", "STREAMER", "MONITOR"} {
		cmd.Env = append(cmd.Env, login+"_DB_PASSWORD=secret")
	}
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", name, output)
}
