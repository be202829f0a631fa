//go:build containers

package policy_test

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// stack is docker-compose.yml with images of these sources, under a name and on ports of its own.
type stack struct {
	t           *testing.T
	command     []string
	environment []string
	api         string
}

func startStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{t: t, command: []string{"docker", "compose"}}
	if exec.CommandContext(t.Context(), "docker", "compose", "version").Run() != nil {
		s.command = []string{"docker-compose"}
	}
	s.command = append(s.command, "--project-name", "diehard-test-"+strconv.Itoa(os.Getpid()))
	var files syscall.Rlimit // Docker may not be allowed more, as inside of another container
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files))
	s.api = testenv.FreeAddress(t)
	s.environment = append(os.Environ(), "API_IMAGE=diehard-api:test", "STREAMER_IMAGE=diehard-streamer:test", "VERSION=v0.0.0-test",
		"API_PORT="+port(t, s.api), "STREAMER_PORT="+port(t, testenv.FreeAddress(t)), "CLICKHOUSE_OPEN_FILES="+strconv.FormatUint(min(files.Max, 262144), 10))
	if os.Getenv("POSTGRES_IMAGE") == "" {
		s.environment = append(s.environment, "POSTGRES_IMAGE=postgres:"+embedded.PostgresVersion())
	}
	s.compose("build")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.compose("logs", "--tail=50"))
		}
		s.compose("down", "--volumes")
	})
	s.compose("up", "--detach", "--no-build")
	return s
}

func port(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	return port
}

func (s *stack) compose(arguments ...string) string {
	s.t.Helper()
	return s.run(append(s.command, arguments...)...)
}

func (s *stack) run(arguments ...string) string {
	s.t.Helper()
	output, err := s.try(arguments...)
	require.NoError(s.t, err, "%s: %s", strings.Join(arguments, " "), output)
	return strings.TrimSpace(output)
}

func (s *stack) try(arguments ...string) (string, error) {
	cmd := exec.Command(arguments[0], arguments[1:]...) //nolint:noctx // also after the test's context has ended
	cmd.Dir, cmd.Env = root(s.t), append(s.environment, "DOCKER_BUILDKIT=1")
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// query asks ClickHouse as a user of docker/clickhouse/users.xml.
func (s *stack) query(user, sql string) (string, error) {
	return s.try(append(s.command, "exec", "-T", "clickhouse", "clickhouse-client", "--user", user, "--password", "diehard", "--database", "diehard", "--query", sql)...)
}

// The images, the compose file, roles.sql, users.xml and the health checks, by an engine.
func TestTheStackWorksInContainers(t *testing.T) {
	s := startStack(t)
	for _, service := range []string{"postgres", "clickhouse", "api", "streamer", "standby"} {
		id, health := s.compose("ps", "-q", service), ""
		await.True(t, func() bool {
			health = s.run("docker", "inspect", "--format", "{{.State.Health.Status}} {{.HostConfig.CapDrop}}", id)
			return health == "healthy [ALL]"
		}, "%s is never healthy", service)
	}
	assert.Contains(t, s.compose("exec", "-T", "streamer", "/streamer", "--version"), "v0.0.0-test")
	await.True(t, func() bool { return createUser(t, s.api) == http.StatusCreated }, "the api takes no user")
	await.True(t, func() bool {
		rows, _ := s.query("streamer", "SELECT event_type FROM event_log")
		return strings.Contains(rows, "user_created")
	}, "the event never arrives")
	_, err := s.query("default", "SELECT 1")
	require.Error(t, err, "the user default has no password")
	answer, err := s.try(append(s.command, "exec", "-T", "postgres", "psql", "--username=api", "--dbname=diehard", "--command=DELETE FROM outbox")...)
	require.Error(t, err)
	assert.Contains(t, answer, "permission denied")
	s.compose("exec", "-T", "streamer", "/streamer", "doctor")
}

func createUser(t *testing.T, api string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+api+"/users",
		strings.NewReader(`{"email":"a@example.com","first_name":"a","last_name":"b"}`))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	require.NoError(t, response.Body.Close())
	return response.StatusCode
}
