package e2e

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// An upgrade in its order: the migrations of this version run while the programs of the
// last release work, and its programs also start on the new tables.
func TestTheProgramsOfTheLastReleaseWorkWithTheTablesOfThisVersion(t *testing.T) {
	t.Parallel()
	streamer, api := lastRelease(t)
	env, _ := containerServer(t, *newEnv(t), embedded.PostgresVersion())
	migrate := func(streamer, api string) {
		for _, path := range []string{streamer, api} {
			p := runPath(t, env, path, []string{"migrate", "up"}, as(t, env, "migrator"))
			require.Zero(t, p.exit(), p.log.text())
		}
	}
	n := 0
	works := func(address string) {
		n++
		code, answer := post(t, address+"/users", `{"email":"u`+strings.Repeat("1", n)+`@example.com","first_name":"a","last_name":"b"}`)
		require.Equal(t, http.StatusCreated, code, answer)
		assert.Equal(t, n, delivered(t, env))
	}
	migrate(streamer, api)
	oldStreamer := runPath(t, env, streamer, nil, as(t, env, "streamer"))
	oldAPI := runPath(t, env, api, nil, as(t, env, "api"))
	works(oldAPI.address())
	migrate(testenv.Build(t, "streamer"), testenv.Build(t, "api"))
	works(oldAPI.address())
	run(t, env, "streamer", as(t, env, "streamer")).says("standby")
	oldStreamer.kill()
	oldAPI.kill()
	newAPI := run(t, env, "api", as(t, env, "api"))
	works(newAPI.address())

	// And back: the release starts on the tables of this version.
	address := testenv.FreeAddress(t)
	runPath(t, env, streamer, nil, as(t, env, "streamer"), "STREAMER_ADDR="+address)
	await.True(t, func() bool { return readiness(t, address).Ready }, "the streamer of the last release is never ready")
	works(runPath(t, env, api, nil, as(t, env, "api")).address())
}

// lastRelease builds the programs of the newest tag that is an ancestor; before the
// first release those are today's.
func lastRelease(t testing.TB) (streamer, api string) {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	git := func(arguments ...string) (string, error) {
		output, err := exec.CommandContext(t.Context(), "git", append([]string{"-c", "safe.directory=*", "-C", root}, arguments...)...).Output()
		return strings.TrimSpace(string(output)), err
	}
	tag, err := git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD")
	if err != nil {
		return testenv.Build(t, "streamer"), testenv.Build(t, "api")
	}
	dir := t.TempDir()
	archive := filepath.Join(dir, "sources.tar")
	_, err = git("archive", "--output="+archive, tag)
	require.NoError(t, err)
	for _, arguments := range [][]string{{"tar", "-C", dir, "-xf", archive}, {"go", "build", "-C", dir, "-o", dir + "/bin/", "./streamer", "./api"}} {
		output, err := exec.CommandContext(t.Context(), arguments[0], arguments[1:]...).CombinedOutput()
		require.NoError(t, err, "%s", output)
	}
	return filepath.Join(dir, "bin/streamer"), filepath.Join(dir, "bin/api")
}
