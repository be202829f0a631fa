package ops_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/ops"
	"diehard/streamer/pipeline"
)

func TestReadyWhileStreamingAndAsStandby(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	first := watch(t, env)
	await.True(t, func() bool { code, _ := first.ready(); return code == http.StatusOK }, "the streamer is never ready")
	_, r := first.ready()
	assert.Equal(t, ops.Readiness{Status: "streaming", Ready: true, Reasons: []string{}, Degraded: []string{}}, r)

	second := watch(t, env)
	await.True(t, func() bool { _, r := second.ready(); return r.Status == "standby" && r.Ready }, "the standby is never ready")

	first.stop()
	await.True(t, func() bool { _, r := second.ready(); return r.Status == "streaming" && r.Ready }, "the standby never takes over")
	assert.Empty(t, second.status().Failures, "a takeover is no failure")
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	w := watch(t, testenv.New(t))
	code, body := w.get("/healthz")
	assert.Equal(t, http.StatusOK, code)
	assert.JSONEq(t, `{"status":"ok"}`, body)
}

func TestNotReadyBeyondTheLimitOfLag(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	w := watch(t, env, func(o *ops.Options) { o.MaxLag = 4 << 20 })
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	restore := refuseInserts(t, env)
	publish(t, env, 1)
	await.True(t, func() bool { _, r := w.ready(); return r.Status == "retrying" }, "nothing is refused")
	publish(t, env, 50_000)
	var reasons []string
	await.True(t, func() bool {
		var code int
		var r ops.Readiness
		code, r = w.ready()
		reasons = r.Reasons
		return code == http.StatusServiceUnavailable && len(reasons) == 2
	}, "the lag is never reported")
	assert.Regexp(t, "^the insert of the present batch fails: insert .*: ", reasons[0])
	assert.Regexp(t, `^the slot is [\d.]+MiB behind, more than STREAMER_MAX_LAG allows \(4MiB\)$`, reasons[1])
	restore()
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer never catches up")
}

func TestNotReadyWithoutTheSlot(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	w := watch(t, env, func(o *ops.Options) { o.Probe.Origin.Slot = "another_slot" })
	await.True(t, func() bool { return w.progress.State() == pipeline.Streaming }, "the streamer never streams")
	await.True(t, func() bool {
		code, r := w.ready()
		return code == http.StatusServiceUnavailable && len(r.Reasons) == 1 && r.Reasons[0] == "slot another_slot does not exist"
	}, "a missing slot is never reported")
	require.Equal(t, "streaming", w.status().State)
}

// A foreign session is no streamer to wait for: it may confirm what is not in ClickHouse.
func TestAStandbyBehindAForeignSessionIsNotReady(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
	require.NoError(t, err)
	foreign := streamFrom(t, env, "pg_recvlogical")
	w := watch(t, env)
	await.True(t, func() bool {
		code, r := w.ready()
		return code == http.StatusServiceUnavailable && r.Status == "standby" && len(r.Reasons) == 1 &&
			strings.Contains(r.Reasons[0], `active for "pg_recvlogical", which is not a streamer`)
	}, "a foreign session is waited for as for a streamer")
	require.NoError(t, foreign.Close(t.Context()))
	await.True(t, func() bool { _, r := w.ready(); return r.Status == "streaming" && r.Ready }, "the streamer never takes the slot")
}

// streamFrom holds the slot with a session of the given application name.
func streamFrom(t *testing.T, env *testenv.Env, application string) *pgconn.PgConn {
	t.Helper()
	cfg, err := pgconn.ParseConfig(env.PostgresURL)
	require.NoError(t, err)
	cfg.RuntimeParams["replication"], cfg.RuntimeParams["application_name"] = "database", application
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	require.NoError(t, pglogrepl.StartReplication(t.Context(), conn, env.Slot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names '" + env.Publication + "'"},
	}))
	return conn
}

// PostgreSQL waits for transactions that have written before it gives a new slot its position.
func TestASlotThatIsBeingCreatedIsNamedAsTheCause(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')")
	require.NoError(t, err)
	w := watch(t, env)
	await.True(t, func() bool {
		code, r := w.ready()
		return code == http.StatusServiceUnavailable && strings.Contains(strings.Join(r.Reasons, "\n"),
			"slot "+env.Slot+" is being created: PostgreSQL waits for running and prepared transactions")
	}, "the cause is never named")
	require.NoError(t, tx.Rollback(t.Context()))
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
}

// Of two streamers at their first start one creates the slot, and the other one waits for it.
func TestASlotThatAnotherSessionCreatesIsNamedAsTheCause(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	cfg, err := pgx.ParseConfig(env.PostgresURL)
	require.NoError(t, err)
	cfg.RuntimeParams["application_name"] = "another streamer"
	other, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = other.Close(context.WithoutCancel(t.Context())) })
	_, err = other.Exec(t.Context(), "SELECT pg_advisory_lock(hashtextextended('diehard_slot ' || $1::text, 0))", env.Slot)
	require.NoError(t, err)
	w := watch(t, env)
	await.True(t, func() bool {
		code, r := w.ready()
		return code == http.StatusServiceUnavailable && strings.Contains(strings.Join(r.Reasons, "\n"),
			fmt.Sprintf("slot %s, which is being created by process %d (another streamer)", env.Slot, other.PgConn().PID()))
	}, "the cause is never named")
	require.NoError(t, other.Close(t.Context()))
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	assert.Empty(t, w.progress.WaitsFor())
}

// A page whose name is rebound to 127.0.0.1 reaches nothing.
func TestAForeignHostIsMisdirected(t *testing.T) {
	t.Parallel()
	w := watch(t, testenv.New(t), func(o *ops.Options) { o.Hosts = []string{"streamer.internal"} })
	for host, want := range map[string]int{
		"evil.example": http.StatusMisdirectedRequest, "evil.example:8081": http.StatusMisdirectedRequest,
		"localhost:8081": http.StatusOK, "127.0.0.1": http.StatusOK, "streamer.internal": http.StatusOK,
	} {
		for _, path := range []string{"/", "/healthz", "/metrics", "/status", "/history"} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+path, http.NoBody)
			require.NoError(t, err)
			request.Host, request.Close = host, true
			response, err := http.DefaultClient.Do(request)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			assert.Equal(t, want, response.StatusCode, "%s as %s", path, host)
		}
	}
}

// The README names every path, and there is nothing at any of them that changes something.
func TestThePageIsReadOnly(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	listed := regexp.MustCompile("`STREAMER_ADDR` [^:]+:8081\\): (.*), read only and without a password").FindStringSubmatch(string(content))
	require.NotNil(t, listed)
	w := watch(t, testenv.New(t))
	send := func(method, path string) int {
		request, err := http.NewRequestWithContext(t.Context(), method, w.url+path, http.NoBody)
		require.NoError(t, err)
		request.Close = true
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		return response.StatusCode
	}
	paths := strings.Split(strings.ReplaceAll(listed[1], "`", ""), ", ")
	require.Equal(t, []string{"/", "/healthz", "/readyz", "/metrics", "/status", "/history"}, paths)
	for _, path := range paths {
		assert.NotEqual(t, http.StatusNotFound, send(http.MethodGet, path), path)
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			assert.Equal(t, http.StatusMethodNotAllowed, send(method, path), "%s %s", method, path)
		}
	}
	for _, path := range []string{"/debug/pprof/", "/debug/vars", "/config", "/admin"} {
		assert.Equal(t, http.StatusNotFound, send(http.MethodGet, path), path)
	}
}
