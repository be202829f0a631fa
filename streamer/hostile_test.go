package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// hostile are settings of a role or a database that change what statements return, or
// whether they finish.
var hostile = map[string]string{
	"client_encoding": "LATIN1", "search_path": "evil", "row_security": "on", "DateStyle": "'SQL', 'DMY'", "IntervalStyle": "iso_8601",
	"TimeZone": "'Asia/Kathmandu'", "bytea_output": "escape", "extra_float_digits": "-15", "xmlbinary": "hex",
	"standard_conforming_strings": "off", "array_nulls": "off", "transform_null_equals": "on", "quote_all_identifiers": "on",
	"exit_on_error": "on", "default_transaction_isolation": "serializable", "default_transaction_deferrable": "on",
	"default_transaction_read_only": "on", "synchronous_commit": "remote_apply", "statement_timeout": "'1ms'", "lock_timeout": "'1ms'",
	"idle_in_transaction_session_timeout": "'1ms'", "idle_session_timeout": "'1ms'", "transaction_timeout": "'2s'", // from within a transaction it can be set, so that it must last for one
}

// changing are the parts of an output that differ from one call to the next.
var changing = regexp.MustCompile(`[0-9]+(\.[0-9]+)?(ms|µs|s|m)\b|[0-9A-F]+/[0-9A-F]{6,}|[0-9]+ (MB|B|KiB|MiB)|[0-9.]+ [KMG]iB|"(actual|version)": "[^"]*"|[+-]?[0-9]+ ms`)

// outcome is what a command answers, without what changes by itself.
func outcome(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command(t, args...)
	if args[0] == "doctor" {
		var findings []struct{ Where, Check, Level string }
		require.NoError(t, json.Unmarshal([]byte(out), &findings), out)
		var lines []string
		for _, f := range findings {
			// These are about the setting itself, or about a server that other tests use.
			if !slices.Contains([]string{"session settings", "default_transaction_read_only", "long transactions", "slots left", "senders left", "clock", "disk", "slot", "failover"}, f.Check) {
				lines = append(lines, fmt.Sprint(f.Where, " ", f.Check, " ", f.Level))
			}
		}
		return strings.Join(lines, "\n")
	}
	return fmt.Sprint(changing.ReplaceAllString(out, "…"), "error: ", err)
}

// asLogin makes the environment that of a login with the streamer's role, and returns its name.
func asLogin(t *testing.T, env *testenv.Env) string {
	t.Helper()
	_, err := env.Pool.Exec(t.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'secret' REPLICATION IN ROLE diehard_streamer", env.Slot))
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), fmt.Sprintf("DROP ROLE %s", env.Slot))
		assert.NoError(t, err)
	})
	use(t, env)
	t.Setenv("DATABASE_URL", testenv.AsUser(t, env.PostgresURL, env.Slot, "secret"))
	return env.Slot
}

// streaming runs the streamer until stop is called.
func streaming(t *testing.T) (stop func()) {
	t.Helper()
	t.Setenv("STREAMER_ADDR", testenv.FreeAddress(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := runStreamer(ctx)
	await.True(t, func() bool { return isReady(t.Context()) }, "the streamer is ready")
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

// Whatever ALTER ROLE and ALTER DATABASE say, every command answers the same.
func TestHostileSettingsChangeNoAnswer(t *testing.T) {
	env := testenv.New(t)
	role := asLogin(t, env)
	insert := func(n int) {
		_, err := env.Pool.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) SELECT 'Zoë', '{\"name\": \"Zoë\"}' FROM generate_series(1, $1)", n)
		require.NoError(t, err)
	}
	stop := streaming(t)
	insert(5)
	await.True(t, func() bool {
		var n uint64
		err := env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM "+env.ClickHouseConfig.EventLogTable).Scan(&n)
		return err == nil && n == 5
	}, "the events are in ClickHouse")
	defer stop()
	commands := [][]string{
		{"doctor", "--json"},
		{"verify"},
		{"events", "--json"},
		{"deadletter", "list"},
		{"bookmark", "list"},
		{"migrate", "status"},
		{"migrate", "up", "--postgres"},
	}
	commands = append(commands, []string{"bookmark", "add", "b"}, []string{"bookmark", "drop", "b"}) // each undoes the one before
	expected := make([]string, len(commands))
	for i, args := range commands {
		expected[i] = outcome(t, args...)
	}
	for _, name := range slices.Sorted(maps.Keys(hostile)) {
		if name == "transaction_timeout" && env.Major(t) < 17 {
			continue
		}
		for _, of := range []string{"ROLE " + role, "DATABASE " + role} {
			t.Run(name+" of "+strings.Fields(of)[0], func(t *testing.T) {
				change(t, env, fmt.Sprintf("ALTER %s SET %s = %s", of, name, hostile[name]))
				defer change(t, env, fmt.Sprintf("ALTER %s RESET %s", of, name))
				// So much WAL that an idle streamer confirms soon: verify waits for it.
				change(t, env, "SELECT pg_logical_emit_message(false, 'test', repeat('x', 8192))")
				for i, args := range commands {
					assert.Equal(t, expected[i], outcome(t, args...), strings.Join(args, " "))
				}
			})
		}
	}
}

// change runs a statement on a session that no setting of the role or the database spoils.
func change(t *testing.T, env *testenv.Env, statement string) {
	t.Helper()
	_, err := env.Pool.Exec(t.Context(), statement) // its sessions began before
	require.NoError(t, err, statement)
}

// All of them at once, on the role and on the database, against the commands that write:
// a stream, a slot that is made anew, a replay, a dead letter that is retried.
func TestHostileSettingsStopNoCommand(t *testing.T) {
	env := testenv.New(t)
	role := asLogin(t, env)
	for _, name := range slices.Sorted(maps.Keys(hostile)) {
		if name == "transaction_timeout" && env.Major(t) < 17 {
			continue
		}
		change(t, env, fmt.Sprintf("ALTER ROLE %s SET %s = %s", role, name, hostile[name]))
		change(t, env, fmt.Sprintf("ALTER DATABASE %s SET %s = %s", role, name, hostile[name]))
	}
	// The owner's sessions have them, too.
	login := os.Getenv("DATABASE_URL")
	t.Setenv("DATABASE_URL", env.PostgresURL)
	change(t, env, "DROP TABLE IF EXISTS users, idempotency_keys CASCADE")
	out, err := command(t, "uninstall", "--yes")
	require.NoError(t, err, out)
	out, err = command(t, "migrate", "up")
	require.NoError(t, err, out)
	t.Setenv("DATABASE_URL", login)

	insert := func(id string) {
		change(t, env, "INSERT INTO outbox (id, event_type, event_context) VALUES ('"+id+"', 'Zoë', '{\"name\": \"Zoë\"}')")
	}
	stop := streaming(t)
	insert("00000000-0000-0000-0000-000000000001")
	out, err = command(t, "replay", "--from-table")
	require.NoError(t, err, out)
	stop()
	for _, verb := range []string{"finish", "drop", "create", "accept"} {
		out, err = command(t, "slot", verb)
		require.NoError(t, err, out)
	}
	change(t, env, "SELECT pg_drop_replication_slot('"+env.Slot+"')")
	insert("00000000-0000-0000-0000-000000000002")
	for _, args := range [][]string{{"slot", "create"}, {"bookmark", "add", "b"}} {
		out, err = command(t, args...)
		require.NoError(t, err, out)
	}
	stop = streaming(t)
	insert("00000000-0000-0000-0000-000000000003")
	out, err = command(t, "replay", "--from-table")
	require.NoError(t, err, out)
	assert.Contains(t, out, "1 were missing, 1 of them are filled now")
	for _, args := range [][]string{{"replay", "--from-bookmark", "b"}, {"verify"}, {"deadletter", "retry", "--all"}, {"bookmark", "drop", "b"}} {
		out, err = command(t, args...)
		require.NoError(t, err, "%v %s", args, out)
	}
	stop()
	out, err = command(t, "status") // asks the databases, as no streamer runs
	require.NoError(t, err, out)
	assert.NotContains(t, out, "unreachable")
	assert.Contains(t, out, env.Slot)
	var n uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM "+env.ClickHouseConfig.EventLogTable+` WHERE event_type = 'Zoë' AND event_context = '{"name": "Zoë"}'`).Scan(&n))
	assert.EqualValues(t, 3, n)
}
