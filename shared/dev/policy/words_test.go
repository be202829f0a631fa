package policy_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// forbidden is text that no committed file may contain, and why.
var forbidden = []struct {
	pattern *regexp.Regexp
	why     string
}{
	{regexp.MustCompile(`(^|[\s"'=(:` + "`" + `])/(root|work|Users|home/[a-z]+)/`), "names a folder of one machine"},
	{regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`), "marks unfinished work"},
	{regexp.MustCompile(`^\s*"res` + `olved":`), "a lock file that carries download addresses"},
	{regexp.MustCompile(`(?i)not (yet )?impl` + `emented`), "marks a stub"},
	{regexp.MustCompile(`^(<{7}|>{7}) `), "is a merge conflict"},
	{regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY`), "is a private key"},
}

func TestNoFileContainsForbiddenText(t *testing.T) {
	for _, name := range committed(t) {
		content, err := os.ReadFile(filepath.Join(root(t), name))
		if os.IsNotExist(err) || bytes.IndexByte(content, 0) >= 0 {
			continue // deleted but not yet committed, or not a text
		}
		require.NoError(t, err)
		number := 0
		for line := range strings.Lines(string(content)) {
			number++
			for _, rule := range forbidden {
				assert.NotRegexpf(t, rule.pattern, line, "%s:%d %s", name, number, rule.why)
			}
		}
	}
}

func TestTheTopOfTheRepositoryStaysShort(t *testing.T) {
	allowed := map[string]bool{
		"api": true, "streamer": true, "shared": true, "migrations": true, "docker": true,
		"docker-compose.yml": true, "Makefile": true, "go.mod": true, "go.sum": true, "README.md": true, "LICENSE": true,
		".ci": true, ".github": true, ".env.example": true, ".gitignore": true, ".golangci.yml": true, ".dockerignore": true, ".gitattributes": true,
	}
	for _, name := range committed(t) {
		top, _, _ := strings.Cut(name, "/")
		assert.Truef(t, allowed[top], "%s: nothing new at the top", name)
	}
}

// committed returns the files of the repository, with slashes. It skips the test
// outside of a git checkout, where committed and local files look the same.
func committed(t *testing.T) []string {
	t.Helper()
	top := root(t)
	if _, err := os.Stat(filepath.Join(top, ".git")); os.IsNotExist(err) {
		t.Skip("not a git checkout")
	}
	list := exec.CommandContext(t.Context(), "git", "-c", "safe.directory=*", "-C", top, "ls-files", "-z")
	output, err := list.Output()
	require.NoError(t, err, "git ls-files")
	names := strings.Split(strings.TrimSuffix(string(output), "\x00"), "\x00")
	require.Greater(t, len(names), 20, "git ls-files found too little to be true")
	return names
}
