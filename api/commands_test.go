package main_test

import (
	"encoding/json"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// runAPI runs the api with a whole environment until it exits.
func runAPI(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Build(t, "api"), args...)
	var out, diagnostics strings.Builder
	cmd.Env, cmd.Stdout, cmd.Stderr = environ, &out, &diagnostics
	_ = cmd.Run() // the exit code says it
	return cmd.ProcessState.ExitCode(), out.String(), diagnostics.String()
}

func TestMistakesStopTheProgramWithOneMessage(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	for name, c := range map[string]struct {
		environ []string
		code    int
		says    []string
	}{
		"settings": {
			[]string{"DATABASE_URL=", "SHUTDOWN_TIMEOUT=soon", "LOG_LEVEL=loud"},
			2,
			[]string{"DATABASE_URL is not set", `SHUTDOWN_TIMEOUT = "soon"`, `LOG_LEVEL = "loud"`},
		},
		"no keys": {
			[]string{"DATABASE_URL=postgres://app@db/app", "API_ADDR=:8080", "ENVIRONMENT=Production"},
			2,
			[]string{"API_KEYS is not set", `API_ADDR = ":8080" can be reached from elsewhere`, "api key NAME", "API_OPEN"},
		},
		"a key instead of its hash": {
			[]string{"DATABASE_URL=postgres://app@db/app", "API_KEYS=shop:hunter2"},
			2,
			[]string{"API_KEYS: key 1 is not a SHA-256 hash", "api key NAME"},
		},
		"database": {
			[]string{"DATABASE_URL=postgres://app:hunter2@db:port/app", "SHUTDOWN_TIMEOUT=1ms"},
			2,
			[]string{"2 settings are wrong", "DATABASE_URL", "SHUTDOWN_TIMEOUT"},
		},
		"malformed address": {[]string{"DATABASE_URL=postgres://app@db/app", "API_ADDR=8080"}, 2, []string{`API_ADDR = "8080" is not HOST:PORT`}},
		"address": {
			[]string{"DATABASE_URL=postgres://app@db/app", "API_ADDR=" + listener.Addr().String()},
			1,
			[]string{"API_ADDR " + listener.Addr().String(), "another program is there: choose another address"},
		},
		"address of another machine": {
			[]string{"DATABASE_URL=postgres://app@db/app", "API_ADDR=192.0.2.1:80", "API_OPEN=true"}, 1, []string{"choose an address of this machine"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, _, text := runAPI(t, c.environ)
			assert.Equal(t, c.code, code)
			for _, part := range c.says {
				assert.Contains(t, text, part)
			}
			assert.NotContains(t, text, "hunter2")
			assert.Equal(t, 1, strings.Count(text, "api: "), text)

			code, _, text = runAPI(t, append(c.environ, "LOG_FORMATTER=json"))
			assert.Equal(t, c.code, code)
			message := strings.Join(requireJSONLines(t, text), "")
			for _, part := range c.says {
				assert.Contains(t, message, part)
			}
		})
	}
}

// A new key goes from the terminal into API_KEYS, and from there opens the api.
func TestAKeyThatTheProgramMade(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), testenv.Build(t, "api"), "key", "shop").Output()
	require.NoError(t, err)
	found := regexp.MustCompile(`^key .*: +(dh_\S+)\nhash .*: +(shop:[0-9a-f]{64})\n$`).FindSubmatch(out)
	require.NotNil(t, found, "%s", out)
	p := start(t, testenv.New(t), "API_KEYS="+string(found[2]))
	assert.Equal(t, http.StatusUnauthorized, <-p.createUser(t))
	assert.Equal(t, http.StatusCreated, <-p.createUser(t, "Authorization", "Bearer "+string(found[1])))
}

func TestUsageErrorsExitWithTwo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"serve"}, `unknown command "serve"`},
		{[]string{"key", "a", "b"}, "accepts at most 1 arg"},
		{[]string{"key", "two words"}, "a name has 1 to 64"},
		{[]string{"--nope"}, "unknown flag: --nope"},
		{[]string{"run", "now"}, "unknown command"},
		{[]string{"healthcheck", "--ready=maybe"}, "invalid argument"},
	} {
		code, _, text := runAPI(t, nil, c.args...)
		assert.Equal(t, 2, code)
		assert.Contains(t, text, c.says)
		assert.True(t, strings.HasPrefix(text, "api: "), text)

		code, _, text = runAPI(t, []string{"LOG_FORMATTER=json"}, c.args...)
		assert.Equal(t, 2, code)
		assert.Contains(t, requireJSONLines(t, text)[0], c.says)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	code, out, _ := runAPI(t, nil, "--version")
	assert.Zero(t, code)
	assert.Regexp(t, `^api \S+ \(commit \S+, date \S+, go1\.\S+\)\n$`, out)
}

// requireJSONLines returns the error of each line, or its message.
func requireJSONLines(t *testing.T, text string) (messages []string) {
	t.Helper()
	for line := range strings.Lines(text) {
		var fields struct {
			Time              time.Time
			Level, Msg, Error string
		}
		require.NoError(t, json.Unmarshal([]byte(line), &fields), line)
		assert.WithinDuration(t, time.Now(), fields.Time, time.Hour)
		assert.NotEmpty(t, fields.Level)
		assert.NotEmpty(t, fields.Msg)
		if fields.Level == "ERROR" {
			assert.NotEmpty(t, fields.Error, line)
		}
		messages = append(messages, fields.Msg+" "+fields.Error)
	}
	require.NotEmpty(t, messages)
	return messages
}
