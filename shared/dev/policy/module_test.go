package policy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Whose copy it is, is said by one command: no import and no address is left behind.
func TestTheModuleGetsThePathOfItsPublisher(t *testing.T) {
	dir, names := t.TempDir(), committed(t)
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(root(t), name))
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	output, err := exec.CommandContext(t.Context(), "make", "-C", dir, "module", "NAME=github.com/acme/events").CombinedOutput()
	require.NoError(t, err, "%s", output) // it resolves every import
	old := regexp.MustCompile(`(?m)"` + module + `/(api|streamer|shared|migrations)\b|^module ` + module + `(/|$)|(pkg|module-path): ` + module + `\b|https://github\.com/diehard/diehard\b`)
	for _, name := range names {
		if name == "Makefile" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Empty(t, old.Find(content), name)
	}
}
