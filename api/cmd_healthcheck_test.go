package main_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

func TestHealthcheckAsksTheRunningAPI(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	check := func(addr string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), testenv.Build(t, "api"), append([]string{"healthcheck"}, args...)...)
		cmd.Env = append(env.Environ(), "API_ADDR="+addr)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	addr := strings.TrimPrefix(start(t, env).address, "http://")
	for _, args := range [][]string{nil, {"--ready"}} {
		out, err := check(addr, args...)
		require.NoError(t, err, out)
	}
	out, err := check("127.0.0.1:1")
	require.Error(t, err)
	assert.Contains(t, out, "refused")
}
