package testenv

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
)

var programs struct {
	sync.Mutex
	paths map[string]string
}

// Build returns the path of a program of this repository, "api" or "streamer",
// built from the sources as they are, with the race detector if the tests have
// it. It is built once per test program.
func Build(t testing.TB, name string) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	if path, ok := programs.paths[name]; ok {
		return path
	}
	root, err := embedded.Root()
	require.NoError(t, err)
	dir, err := embedded.TestDir()
	require.NoError(t, err)
	path := filepath.Join(dir, "bin", name)
	var flags []string
	if RaceDetector {
		path += "-race"
		flags = append(flags, "-race")
	}
	require.NoError(t, embedded.Build(context.Background(), root, "./"+name, path, flags...))
	if programs.paths == nil {
		programs.paths = map[string]string{}
	}
	programs.paths[name] = path
	return path
}
