package e2e

import (
	"context"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// Everything that the programs do is within what their groups are granted.
func TestProgramsNeedNothingButTheirRoles(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	apiURL := login(t, env, "diehard_api", "")
	streamerURL := login(t, env, "diehard_streamer", "REPLICATION")

	s := run(t, env, "streamer", "DATABASE_URL="+streamerURL, "OUTBOX_RETENTION=1h")
	api := run(t, env, "api", "DATABASE_URL="+apiURL).address()
	s.says("streaming")
	code, body := post(t, api+"/users", `{"email":"ada@example.com","first_name":"Ada","last_name":"Lovelace"}`)
	require.Equal(t, http.StatusCreated, code, body)
	require.Equal(t, 1, delivered(t, env))
	for _, command := range []string{"doctor", "bookmark add kept", "replay --from-table", "replay --from-bookmark kept", "bookmark drop kept", "deadletter list", "deadletter drop --all", "status"} {
		cmd := exec.CommandContext(t.Context(), testenv.Build(t, "streamer"), strings.Fields(command)...)
		cmd.Env = append(env.Environ(), "DATABASE_URL="+streamerURL, "STREAMER_ADDR=127.0.0.1:1")
		out, err := cmd.CombinedOutput()
		assert.NotContains(t, string(out), "permission denied", command)
		if code := cmd.ProcessState.ExitCode(); command != "doctor" || code != 1 { // 1: warnings
			require.NoErrorf(t, err, "%s: %s", command, out)
		}
	}
	s.signal(syscall.SIGTERM)
	require.Zero(t, s.exit())
	assert.NotContains(t, s.log.text(), "permission denied")
}

// login returns the address of env's database for a new role in group.
func login(t *testing.T, env *testenv.Env, group, attributes string) string {
	t.Helper()
	name := env.Slot + "_" + group
	_, err := env.Pool.Exec(t.Context(), "CREATE ROLE "+name+" LOGIN "+attributes+" PASSWORD 'secret' IN ROLE "+group)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+name)
		assert.NoError(t, err)
	})
	address, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	address.User = url.UserPassword(name, "secret")
	return address.String()
}
