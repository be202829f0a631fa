package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
)

// A streamer waits for the migrations of its version, and takes those of a newer one.
func TestAStreamerIsReadyOnceTheTablesAreThoseOfItsVersion(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	execute(t, env, "DELETE FROM diehard_outbox_version WHERE version_id > 2")
	address := testenv.FreeAddress(t)
	s := run(t, env, "streamer", "STREAMER_ADDR="+address)
	await.True(t, func() bool {
		r := readiness(t, address)
		return r.Cause == failure.Schema && strings.Contains(strings.Join(r.Reasons, "\n"), "have version 2")
	}, "the version is never named")
	s.says("the streamer cannot run")
	execute(t, env, "INSERT INTO diehard_outbox_version (version_id) VALUES (999)")
	await.True(t, func() bool { return readiness(t, address).Ready }, "the streamer is never ready")
	publish(t, env, 1)
	awaitRows(t, env, 1)
	require.NotContains(t, s.log.text(), "version 999")
}
