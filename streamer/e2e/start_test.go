package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// An operator may skip forward, and never back.
func TestStartLSN(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env).stop()
	publish(t, env, 5)
	middle := walEnd(t, env)
	publish(t, env, 7)

	err := launch(t, env, func(c *setup) { c.StartLSN = walEnd(t, env) + 1<<30 }).refusal()
	require.ErrorContains(t, err, "beyond the end of the WAL")
	s := start(t, env, func(c *setup) { c.StartLSN = middle })
	awaitRows(t, env, 7)
	require.Contains(t, s.log.text(), "skipping events: --start-lsn")

	// A connection that is lost, with more confirmed than StartLSN, is no reason to refuse.
	execute(t, env, "SELECT pg_terminate_backend($1)", walsender(t, env))
	publish(t, env, 3)
	awaitRows(t, env, 10)
	s.stop()

	err = launch(t, env, func(c *setup) { c.StartLSN = middle }).refusal()
	require.ErrorContains(t, err, "streamer replay --from-lsn "+middle.String())
}
