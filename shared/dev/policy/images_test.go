package policy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Versions that are said in two places are the same.
func TestImagesAreOfOneMind(t *testing.T) {
	read := func(name, pattern string) string {
		content, err := os.ReadFile(filepath.Join(root(t), name))
		require.NoError(t, err)
		found := regexp.MustCompile(pattern).FindSubmatch(content)
		require.NotNil(t, found, "%s has no %s", name, pattern)
		return string(found[1])
	}
	goVersion := read("go.mod", `(?m)^go (\S+)$`)
	assert.Equal(t, goVersion, read("docker/Dockerfile", `(?m)^ARG GO_VERSION=(\S+)$`))
	assert.Equal(t, goVersion, read("shared/dev/policy/deployment/go.mod", `(?m)^go (\S+)$`))
	assert.Equal(t, read("docker-compose.yml", `CLICKHOUSE_IMAGE:-([^}]+)`),
		read("shared/dev/testenv/containers.go", `defaultClickHouseImage = "([^"]+)"`))
	assert.Equal(t, read("docker-compose.yml", `POSTGRES_IMAGE:-postgres:(\d+)`),
		read("shared/dev/embedded/pins.go", `DefaultPostgresVersion\s*=\s*"(\d+)"`))
	assert.Equal(t, read("docker-compose.yml", `SOURCE:-([^}]+)`), read("docker/Dockerfile", `(?m)^ARG SOURCE=(\S+)$`))
}
