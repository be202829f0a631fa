// Package clients_test runs the code of the pages in this folder: by make test-clients.
package clients_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// runClients is set by make test-clients.
const runClients = "TEST_CLIENTS"

// program returns the code of a page: all of its blocks, in order.
func program(t *testing.T, page, name string) string {
	t.Helper()
	return strings.Join(blocks(t, page, name), "")
}

// blocks are those of a page behind the lines <!-- run: NAME -->.
func blocks(t *testing.T, page, name string) (list []string) {
	t.Helper()
	content, err := os.ReadFile(page)
	require.NoError(t, err)
	block := regexp.MustCompile("(?s)<!-- run: " + regexp.QuoteMeta(name) + " -->\n```[a-z]+\n(.*?)\n```\n")
	for _, match := range block.FindAllStringSubmatch(string(content), -1) {
		list = append(list, match[1]+"\n")
	}
	require.NotEmpty(t, list, "%s has no block for %s", page, name)
	return list
}

// client runs a program with the environment of an application, and returns what it prints.
type client func(t *testing.T, code string, environ []string) string

// missing skips a test for what the machine lacks, or fails where .ci/run installs it.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		require.Fail(t, what+" is missing", ".ci/run installs it")
	}
	t.Skip(what + " is missing: not run")
}

// output runs a command in a folder and returns what it prints.
func output(t *testing.T, dir string, environ []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, environ
	printed, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), printed)
	return string(printed)
}

// file runs code as a file of a new folder, by a command to which its path is added.
func file(name string, command ...string) client {
	return func(t *testing.T, code string, environ []string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, []byte(code), 0o600))
		return output(t, filepath.Dir(path), environ, command[0], append(slices.Clone(command[1:]), path)...)
	}
}

// shop is a database of an application: an order 42, and a login that may publish and
// write orders, and nothing else. It returns the environment of the login's programs.
func shop(t *testing.T, env *testenv.Env) []string {
	t.Helper()
	login := env.Slot + "_shop"
	for _, statement := range []string{
		"CREATE ROLE " + login + " LOGIN PASSWORD 'secret' IN ROLE diehard_producer",
		"CREATE TABLE orders (id bigint PRIMARY KEY, paid boolean NOT NULL DEFAULT false)",
		"INSERT INTO orders VALUES (42)",
		"GRANT SELECT, INSERT, UPDATE ON orders TO " + login,
	} {
		_, err := env.Pool.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+login+"; DROP ROLE "+login)
		assert.NoError(t, err)
	})
	url := testenv.AsUser(t, env.PostgresURL, login, "secret")
	config := env.Pool.Config().ConnConfig
	environ := slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, "PG") })
	return append(environ, "DATABASE_URL="+url, "PGHOST="+config.Host, "PGPORT="+strings.Split(strings.SplitAfter(url, config.Host+":")[1], "/")[0],
		"PGUSER="+login, "PGPASSWORD=secret", "PGDATABASE="+config.Database, "PGSSLMODE=disable")
}

// stream runs a streamer until t ends.
func stream(t *testing.T, env *testenv.Env) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Build(t, "streamer"))
	cmd.Env = append(env.Environ(), "STREAMER_ADDR=127.0.0.1:0")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	log := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Wait() // t's context is over
		if t.Failed() {
			t.Log(log.String())
		}
	})
	await.True(t, func() bool { // a slot that is being created is active, too, and may begin later
		var streams bool
		err := env.Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_replication_slots AS s JOIN pg_stat_replication AS r ON r.pid = s.active_pid
			WHERE s.slot_name = $1 AND r.state IN ('catchup', 'streaming'))`, env.Slot).Scan(&streams)
		return err == nil && streams
	}, "the streamer does not start")
}

var listening = regexp.MustCompile(`127\.0\.0\.1:[1-9][0-9]*`)

// serve runs the api until t ends, and returns its address.
func serve(t *testing.T, env *testenv.Env) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Build(t, "api"))
	cmd.Env = append(env.Environ(), "API_ADDR=127.0.0.1:0", "LOG_FORMATTER=json")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	log, err := cmd.StderrPipe()
	require.NoError(t, err)
	cmd.Stdout = cmd.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Wait() }) // t's context is over
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if address := listening.FindString(lines.Text()); address != "" {
			go func() { _, _ = io.Copy(io.Discard, log) }()
			return "http://" + address
		}
	}
	require.Fail(t, "the api does not say where it listens")
	return ""
}

// arrived demands exactly these events in ClickHouse, each "type context", in order.
func arrived(t *testing.T, env *testenv.Env, want []string) {
	t.Helper()
	var got []string
	await.True(t, func() bool {
		got = events(t, env)
		return len(got) >= len(want)
	}, "not all events arrived")
	assert.Equal(t, want, got)
	var rows int
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM outbox").Scan(&rows))
	assert.Len(t, want, rows, "rows in the outbox")
}

// events are those in ClickHouse.
func events(t *testing.T, env *testenv.Env) (list []string) {
	t.Helper()
	rows, err := env.ClickHouse.Query(t.Context(), "SELECT concat(event_type, ' ', event_context) FROM "+
		env.ClickHouseConfig.EventLogTable+" ORDER BY commit_lsn, commit_seq")
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var row string
		require.NoError(t, rows.Scan(&row))
		list = append(list, row)
	}
	require.NoError(t, rows.Err())
	return list
}
