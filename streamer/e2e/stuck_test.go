package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/ops"
)

// readiness is what /readyz of a streamer says; not ready while nothing listens.
func readiness(t testing.TB, address string) (r ops.Readiness) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/readyz", nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return r
	}
	defer response.Body.Close()
	require.NoError(t, json.NewDecoder(response.Body).Decode(&r))
	return r
}

var skipTo = regexp.MustCompile("`streamer run --start-lsn ([0-9A-F/]+)`")

// Each session ends within the same transaction: a link that is cut after so many bytes
// stands for whatever keeps PostgreSQL from sending it. That is a state of its own, and what
// it says leads past it: the transaction is skipped, and filled from the table.
func TestAStreamThatFailsInTheSameTransactionIsStuck(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env).stop()
	execute(t, env, "INSERT INTO outbox (event_type, event_context) SELECT 'large', json_build_object('a', repeat('x', 900000))")
	publish(t, env, 3)
	n, _ := toPostgres(t, env)
	n.add("limit", "limit_data", "downstream", `{"bytes": 500000}`)
	through, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	through.Host = n.proxy.Listen
	address := testenv.FreeAddress(t)
	p := runArgs(t, env, "streamer", nil, "DATABASE_URL="+through.String(), "STREAMER_ADDR="+address)
	var r ops.Readiness
	await.True(t, func() bool { r = readiness(t, address); return r.Status == ops.Stuck }, "the streamer never says that it is stuck")
	require.False(t, r.Ready)
	require.NotEmpty(t, r.Reasons)
	at := skipTo.FindStringSubmatch(r.Reasons[0])
	require.NotNil(t, at, "%v", r.Reasons)
	assert.Contains(t, r.Reasons[0], "receive:", "the cause")
	status := runArgs(t, env, "streamer", []string{"status"}, "STREAMER_ADDR="+address)
	status.exit()
	assert.Contains(t, status.log.text(), "STUCK")
	p.kill()

	p = runArgs(t, env, "streamer", []string{"run", "--start-lsn", at[1]}, "DATABASE_URL="+through.String(), "STREAMER_ADDR="+address)
	awaitRows(t, env, 3)
	await.True(t, func() bool { return readiness(t, address).Ready }, "the streamer is never ready again")
	replay := runArgs(t, env, "streamer", []string{"replay", "--from-table"})
	require.Zero(t, replay.exit(), replay.log.text())
	assert.Contains(t, replay.log.text(), "1 were missing, 1 of them are filled now")
	p.kill()
	delivered(t, env)
}

// What the server waits for is named, and not taken for a stream that is well.
func TestReadinessNamesTheStandbyThatPostgreSQLWaitsFor(t *testing.T) {
	t.Parallel()
	env, _ := ownPostgres(t, nil)
	if env.Major(t) < 17 {
		t.Skip("synchronized_standby_slots is new in PostgreSQL 17")
	}
	address := testenv.FreeAddress(t)
	runArgs(t, env, "streamer", nil, "STREAMER_ADDR="+address).says("streaming")
	publish(t, env, 3)
	delivered(t, env)
	execute(t, env, "SELECT pg_create_physical_replication_slot('standby')")
	execute(t, env, "ALTER SYSTEM SET synchronized_standby_slots = 'standby'")
	execute(t, env, "SELECT pg_reload_conf()")
	publish(t, env, 3)
	await.True(t, func() bool {
		r := readiness(t, address)
		return len(r.Reasons) == 1 && r.Reasons[0] == "PostgreSQL sends nothing until the standby of slot standby is connected: start it, or take it out of synchronized_standby_slots"
	}, "the standby is never named")
	execute(t, env, "ALTER SYSTEM RESET synchronized_standby_slots")
	execute(t, env, "SELECT pg_reload_conf()")
	delivered(t, env)
	await.True(t, func() bool { return readiness(t, address).Ready }, "the streamer is never ready again")
}

// A streamer that PostgreSQL takes for a synchronous standby says so at its start.
func TestASynchronousStreamerIsSaidAtTheStart(t *testing.T) {
	t.Parallel()
	env, _ := ownPostgres(t, map[string]string{"synchronous_standby_names": "FIRST 1 (*)", "synchronous_commit": "local"})
	s := start(t, env)
	assert.Contains(t, s.log.text(), "makes the streamer a synchronous standby: commits of producers may wait")
	publish(t, env, 3)
	delivered(t, env)
}
