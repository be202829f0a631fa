package e2e

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// PostgreSQL begins anew, as with an empty volume, and event_log does not.
func TestEventsOfAServerThatIsGoneAreReported(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	command(t, env, "INSERT INTO LOG (source, commit_lsn, commit_seq) VALUES ('1/"+env.Slot+"', 1, 1), ('2/"+env.Slot+"/table', 1, 1), ('3/"+env.Slot+"_1', 1, 1)")
	s := start(t, env)
	publish(t, env, 1)
	awaitRows(t, env, 4)
	s.stop()
	const sentence = "event_log has events of this slot from another PostgreSQL server"
	assert.Contains(t, s.log.text(), sentence)
	assert.Contains(t, s.log.text(), "unknown=[1/"+env.Slot+"]")

	s = start(t, env) // its own events are there
	s.stop()
	assert.NotContains(t, s.log.text(), sentence)
}

// A server that was upgraded has the record of the one before.
func TestEventsOfTheServerBeforeAnUpgradeAreNotReported(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env).stop()
	command(t, env, "INSERT INTO LOG (source, commit_lsn, commit_seq) VALUES ('1/"+env.Slot+"', 1, 1)")
	_, err := env.Pool.Exec(t.Context(), "UPDATE diehard_intent SET system_id = '1' WHERE slot_name = $1", env.Slot)
	require.NoError(t, err)
	s := start(t, env, hasty)
	publish(t, env, 1)
	awaitRows(t, env, 2)
	assert.NotContains(t, s.log.text(), "another PostgreSQL server")
}
