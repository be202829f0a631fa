package e2e

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// withProfile is an environment whose ClickHouse gives its user a profile.
func withProfile(t *testing.T, profile string) *testenv.Env {
	t.Helper()
	env, engine := *newEnv(t), testenv.StartClickHouse(t, embedded.ClickHouseOptions{Profile: profile})
	env.ClickHouseConfig = engine.Config("default")
	require.NoError(t, migrations.UpClickHouse(t.Context(), env.ClickHouseConfig, slog.New(slog.DiscardHandler)))
	var err error
	env.ClickHouse, err = clickhouse.Open(t.Context(), env.ClickHouseConfig)
	require.NoError(t, err)
	t.Cleanup(func() { _ = env.ClickHouse.Close() })
	skipFsync(t, &env)
	return &env
}

// What a profile forbids is no fault of the rows: the streamer ends with what to change.
func TestAProfileThatForbidsASettingOfInserts(t *testing.T) {
	t.Parallel()
	env := withProfile(t, `<insert_deduplicate>0</insert_deduplicate> <constraints><insert_deduplicate><const/></insert_deduplicate></constraints>`)
	s := start(t, env)
	publish(t, env, 20)
	says(t, s.refusal(), "insert_deduplicate", "profile", "streamer doctor")
	assert.Zero(t, countRows(t, env))
	assert.Zero(t, s.seen.deadLetters.Load())
	deadLetters(t, env, 0)
}

// A profile that ignores the errors of views silences none: they are heard, and the rows are written.
func TestAProfileThatIgnoresViews(t *testing.T) {
	t.Parallel()
	env := withProfile(t, "<materialized_views_ignore_errors>1</materialized_views_ignore_errors>")
	command(t, env, "CREATE TABLE target (n UInt8) ENGINE = MergeTree ORDER BY n")
	command(t, env, "CREATE MATERIALIZED VIEW watcher TO target AS SELECT throwIf(commit_seq > 0) AS n FROM LOG")
	s := start(t, env)
	publish(t, env, 5)
	awaitRows(t, env, 5)
	confirmedPast(t, env)
	await.True(t, func() bool { return len(s.seen.failed()) > 0 }, "the view's failure is reported")
	assert.Equal(t, 5, countRows(t, env))
	deadLetters(t, env, 0)
}
