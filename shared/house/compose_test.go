package house_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// composeFiles are docker-compose.yml and what goes on top of it.
var composeFiles = []string{"docker-compose.yml", "docker/compose.cluster.yml"}

type composeService struct {
	Image       string
	Build       map[string]string
	Environment map[string]string
	Ports       []string
	Volumes     []string
	CapDrop     []string `yaml:"cap_drop"`
	SecurityOpt []string `yaml:"security_opt"`
	ReadOnly    bool     `yaml:"read_only"`
	Privileged  bool
	NetworkMode string `yaml:"network_mode"`
	Restart     string
	Healthcheck map[string]any
	StopGrace   string `yaml:"stop_grace_period"`
}

func readCompose(t *testing.T, name string) (text string, services map[string]composeService) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root(t), name))
	require.NoError(t, err)
	var file struct{ Services map[string]composeService }
	require.NoError(t, yaml.Unmarshal(content, &file), name)
	require.NotEmpty(t, file.Services, name)
	return string(content), file.Services
}

var variable = regexp.MustCompile(`\$\{(\w+)(?::-([^}]*))?\}`)

func TestComposeReadsDocumentedSettings(t *testing.T) {
	documented := map[string]string{"API_KEYS": ""}
	for _, section := range sections() {
		for _, v := range section.Vars {
			documented[v.Name] = v.Default
		}
	}
	// In containers logs are for machines.
	documented["LOG_FORMATTER"] = "json"
	for _, name := range composeFiles {
		text, services := readCompose(t, name)
		for _, found := range variable.FindAllStringSubmatch(text, -1) {
			value, ok := documented[found[1]]
			assert.True(t, ok, "%s reads %s, which no setting describes", name, found[1])
			assert.Equal(t, value, found[2], "%s: default of %s", name, found[1])
		}
		for service, s := range services {
			if service != "api" && service != "streamer" && service != "migrate" {
				continue
			}
			for variable := range s.Environment {
				assert.True(t, variable == "PGPASSWORD" || known()[variable], "%s: %s sets %s, which nobody reads", name, service, variable)
			}
		}
	}
}

func TestComposePublishesNothingButTheAPI(t *testing.T) {
	for _, name := range composeFiles {
		_, services := readCompose(t, name)
		for service, s := range services {
			assert.False(t, s.Privileged, service)
			assert.Empty(t, s.NetworkMode, service)
			for _, port := range s.Ports {
				if service == "api" {
					port = variable.ReplaceAllString(port, "$2")
				}
				assert.True(t, strings.HasPrefix(port, "127.0.0.1:"), "%s: %s publishes %s", name, service, port)
			}
		}
	}
}

func TestComposeServicesAreHardened(t *testing.T) {
	_, services := readCompose(t, "docker-compose.yml")
	for _, name := range []string{"api", "streamer", "migrate", "prometheus", "grafana"} {
		s := services[name]
		assert.True(t, s.ReadOnly, name)
		assert.Equal(t, []string{"ALL"}, s.CapDrop, name)
		assert.Equal(t, []string{"no-new-privileges:true"}, s.SecurityOpt, name)
	}
	for name, s := range services {
		assert.NotEmpty(t, s.Restart, name)
	}
	for _, name := range []string{"api", "streamer", "postgres", "clickhouse"} {
		assert.NotEmpty(t, services[name].Healthcheck["test"], name)
	}
	grace, err := time.ParseDuration(services["streamer"].StopGrace)
	require.NoError(t, err)
	assert.Greater(t, grace, shutdownSeconds*time.Second, "the streamer is killed before its SHUTDOWN_TIMEOUT")
}

func TestComposeMountsWhatIsThere(t *testing.T) {
	for _, name := range composeFiles {
		_, services := readCompose(t, name)
		for service, s := range services {
			for _, volume := range s.Volumes {
				from, _, _ := strings.Cut(volume, ":")
				if strings.HasPrefix(from, "./") {
					_, err := os.Stat(filepath.Join(root(t), from)) // relative to the first file's folder
					assert.NoError(t, err, "%s: %s", name, service)
					assert.True(t, strings.HasSuffix(volume, ":ro"), "%s: %s may write to the checkout: %s", name, service, volume)
				}
			}
		}
	}
}

// Versions that are said in two places are the same.
func TestImagesAreOfOneMind(t *testing.T) {
	read := func(name, pattern string) string {
		content, err := os.ReadFile(filepath.Join(root(t), name))
		require.NoError(t, err)
		found := regexp.MustCompile(pattern).FindSubmatch(content)
		require.NotNil(t, found, "%s has no %s", name, pattern)
		return string(found[1])
	}
	assert.Equal(t, read("go.mod", `(?m)^go (\S+)$`), read("docker/Dockerfile", `(?m)^ARG GO_VERSION=(\S+)$`))
	assert.Equal(t, read("docker-compose.yml", `CLICKHOUSE_IMAGE:-([^}]+)`),
		read("shared/testenv/containers.go", `defaultClickHouseImage = "([^"]+)"`))
	assert.Equal(t, read("docker-compose.yml", `POSTGRES_IMAGE:-postgres:(\d+)`),
		read("shared/embedded/pins.go", `DefaultPostgresVersion\s*=\s*"(\d+)"`))
}
