package deployment

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The files of compose; those behind the first one go on top of it.
const (
	composeFile = "docker-compose.yml"
	clusterFile = "docker/compose.cluster.yml"
	publicFile  = "docker/compose.public.yml"
)

// loadCompose reads files below dir as docker compose does, every profile included.
func loadCompose(dir string, environment map[string]string, files ...string) (*types.Project, error) {
	paths := make([]string, len(files))
	for i, file := range files {
		paths[i] = filepath.Join(dir, file)
	}
	var pairs []string
	for name, value := range environment {
		pairs = append(pairs, name+"="+value)
	}
	options, err := cli.NewProjectOptions(paths, cli.WithName("diehard"), cli.WithWorkingDirectory(dir), cli.WithEnv(pairs), cli.WithProfiles([]string{"*"}))
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

// programs are the services that run ours, and the sections of .env.example that each reads.
var programs = map[string][]string{
	"migrate-api": {"PostgreSQL", "api", "Logs and Sentry", "Both programs"},
	"api":         {"PostgreSQL", "api", "Logs and Sentry", "Both programs"},
	"streamer":    {"PostgreSQL", "ClickHouse", "streamer", "Logs and Sentry", "Both programs"},
	"standby":     {"PostgreSQL", "ClickHouse", "streamer", "Logs and Sentry", "Both programs"},
	"migrate":     {"PostgreSQL", "ClickHouse", "streamer", "Logs and Sentry", "Both programs"},
}

// fixed are settings that compose decides: an address inside of the network, and who
// a program is to the databases.
var fixed = map[string]bool{"API_ADDR": true, "API_METRICS_ADDR": true, "STREAMER_ADDR": true, "CLICKHOUSE_USER": true, "CLICKHOUSE_PASSWORD": true, "PGUSER": true, "PGPASSWORD": true}

// instead are defaults that differ in containers: the engines there, and logs for machines.
var instead = map[string]string{
	"LOG_FORMATTER": "json", "CLICKHOUSE_HOST": "clickhouse", "CLICKHOUSE_SCHEMA": "diehard",
	"API_OPEN":     "true",
	"DATABASE_URL": "postgres://postgres/diehard?sslmode=disable",
}

// settingsBySection reads .env.example.
func settingsBySection(t *testing.T) map[string]map[string]string {
	t.Helper()
	sections, section := map[string]map[string]string{}, ""
	title, assignment := regexp.MustCompile(`^# ---- (.+) ----$`), regexp.MustCompile(`^#([A-Z][A-Z_0-9]+)=(.*)$`)
	for line := range bytes.Lines(read(t, ".env.example")) {
		text := strings.TrimSuffix(string(line), "\n")
		if found := title.FindStringSubmatch(text); found != nil {
			section = found[1]
			sections[section] = map[string]string{}
		} else if found := assignment.FindStringSubmatch(text); found != nil {
			sections[section][found[1]] = found[2]
		}
	}
	return sections
}

func TestEverySettingReachesTheProgramsInCompose(t *testing.T) {
	sections, all := settingsBySection(t), settings(t)
	chosen := map[string]string{}
	for name := range all {
		chosen[name] = "chosen-" + strings.ToLower(name)
	}
	for _, name := range []string{"API_PORT", "STREAMER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT", "STOP_GRACE_PERIOD", "POSTGRES_MEMORY", "CLICKHOUSE_MEMORY", "API_MEMORY", "STREAMER_MEMORY", "CLICKHOUSE_OPEN_FILES", "CERTIFICATES"} {
		chosen[name] = all[name] // numbers
	}
	set, err := loadCompose(root, chosen, composeFile)
	require.NoError(t, err)
	unset, err := loadCompose(root, nil, composeFile)
	require.NoError(t, err)
	for service, parts := range programs {
		reads := map[string]bool{}
		for _, part := range parts {
			require.NotEmpty(t, sections[part], part)
			for name := range sections[part] {
				reads[name] = true
				if fixed[name] {
					continue
				}
				value := set.Services[service].Environment[name]
				if assert.NotNil(t, value, "%s: %s does not arrive", service, name) {
					assert.Equal(t, chosen[name], *value, "%s: %s", service, name)
				}
				value = unset.Services[service].Environment[name]
				if want, ok := instead[name]; ok {
					assert.Equal(t, want, *value, "%s: default of %s", service, name)
				} else {
					assert.Nil(t, value, "%s: compose has a default of its own for %s", service, name)
				}
			}
		}
		for name := range set.Services[service].Environment {
			assert.True(t, reads[name] || name == "PGUSER" || name == "PGPASSWORD", "%s sets %s, which the program does not read", service, name)
		}
	}
}

func TestComposeReadsDocumentedVariables(t *testing.T) {
	documented := settings(t)
	for name, value := range instead {
		documented[name] = value
	}
	variable := regexp.MustCompile(`\$\{(\w+)(?::-([^}]*))?[^}]*\}`)
	for _, file := range []string{composeFile, clusterFile} {
		for _, found := range variable.FindAllStringSubmatch(string(read(t, file)), -1) {
			value, ok := documented[found[1]]
			assert.True(t, ok, "%s reads %s, which no setting describes", file, found[1])
			assert.Equal(t, value, found[2], "%s: default of %s", file, found[1])
		}
	}
	used := string(read(t, composeFile)) + string(read(t, clusterFile)) + string(read(t, publicFile))
	for name := range settingsBySection(t)["docker compose"] {
		assert.Contains(t, used, "${"+name+":", "%s is documented, and nothing reads it", name)
	}
}

// The api is open to others only with keys and passwords of one's own.
func TestComposeRefusesToOpenWithDefaultPasswords(t *testing.T) {
	environment := map[string]string{}
	for _, found := range regexp.MustCompile(`\$\{(\w+):\?`).FindAllStringSubmatch(string(read(t, publicFile)), -1) {
		environment[found[1]] = "1"
	}
	for name := range settings(t) {
		if strings.HasSuffix(name, "_PASSWORD") && name != "CLICKHOUSE_PASSWORD" {
			assert.Contains(t, environment, name, "a password that may stay the default")
		}
	}
	environment["API_PUBLISH"] = "0.0.0.0:80"
	for name := range environment {
		without := map[string]string{}
		for other, value := range environment {
			if other != name {
				without[other] = value
			}
		}
		_, err := loadCompose(root, without, composeFile, publicFile)
		require.ErrorContains(t, err, name)
	}
	project, err := loadCompose(root, environment, composeFile, publicFile)
	require.NoError(t, err)
	assert.Len(t, project.Services["api"].Ports, 2)
}

func TestComposeFilesFitTogether(t *testing.T) {
	assert.Empty(t, checkCompose(root, settings(t)))
}

var composeMutations = []struct{ name, file, from, to string }{
	{"started is not healthy", composeFile, "      postgres: {condition: service_healthy}\n      clickhouse: {condition: service_healthy}", "      postgres: {condition: service_started}\n      clickhouse: {condition: service_healthy}"},
	{"traffic before the migrations", composeFile, "      migrate-api: {condition: service_completed_successfully}", "      migrate-api: {condition: service_started}"},
	{"a streamer before the migrations", composeFile, "      migrate: {condition: service_completed_successfully}\n    healthcheck:\n      test: [CMD, /streamer", "      postgres: {condition: service_healthy}\n    healthcheck:\n      test: [CMD, /streamer"},
	{"a capability", composeFile, "  cap_drop: [ALL]\n", "  cap_drop: [ALL]\n  cap_add: [SYS_ADMIN]\n"},
	{"another capability of the engines", composeFile, "cap_add: [CHOWN,", "cap_add: [SYS_ADMIN, CHOWN,"},
	{"killed at 10 s", composeFile, "    stop_grace_period: ${STOP_GRACE_PERIOD:-45s}\n", ""},
	{"killed at 30 s", composeFile, "STOP_GRACE_PERIOD:-45s", "STOP_GRACE_PERIOD:-30s"},
	{"the path of a volume of the image", composeFile, "PGDATA: /var/lib/postgresql/pgdata", "PGDATA: /var/lib/postgresql/data/pgdata"},
	{"data outside of the volume", composeFile, "postgres:/var/lib/postgresql\n", "postgres:/var/lib/postgres\n"},
	{"the path of each image", composeFile, "      PGDATA: /var/lib/postgresql/pgdata\n", ""},
	{"published to all", composeFile, `"127.0.0.1:${STREAMER_PORT:-8081}:8081"`, `"${STREAMER_PORT:-8081}:8081"`},
	{"logs without end", composeFile, "options: {max-size: 10m, max-file: \"5\"}", "options: {}"},
	{"less memory than the api takes", composeFile, "API_MEMORY:-256m", "API_MEMORY:-128m"},
	{"memory without end", composeFile, "    mem_limit: ${API_MEMORY:-256m}\n", ""},
	{"processes without end", composeFile, "  pids_limit: 256\n", ""},
	{"a writable root", composeFile, "read_only: true", "read_only: false"},
	{"a standby in the way of the streamer", composeFile, "    ports: []\n", "    ports: [\"127.0.0.1:8081:8081\"]\n"},
	{"a mount that may be written to", composeFile, "docker-entrypoint-initdb.d:ro", "docker-entrypoint-initdb.d"},
	{"a mount of what is not there", composeFile, "./docker/clickhouse/users.xml", "./docker/clickhouse/user.xml"},
	{"an image built twice", composeFile, "  standby:\n", "  standby:\n    build: {context: ., dockerfile: docker/Dockerfile, target: streamer}\n"},
	{"no health check", composeFile, "test: [CMD, /api, healthcheck, --ready]", "disable: true"},
	{"a misspelt field", composeFile, "shm_size", "shmsize"},
	{"a Keeper that is not waited for", clusterFile, "keeper: {condition: service_healthy}", "keeper: {condition: service_started}"},
	{"images as root", "docker/Dockerfile", "USER 65532:65532", "USER 0:0"},
	{"an image with a shell", "docker/Dockerfile", "FROM scratch AS bare", "FROM golang AS bare"},
	{"an image without a version", "docker/Dockerfile", "org.opencontainers.image.version=$VERSION", "version=$VERSION"},
}

func TestMistakesInComposeFilesAreSeen(t *testing.T) {
	known := settings(t)
	for _, mutation := range composeMutations {
		t.Run(mutation.name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(filepath.Join(dir, "docker"), os.DirFS(filepath.Join(root, "docker"))))
			require.NoError(t, os.WriteFile(filepath.Join(dir, composeFile), read(t, composeFile), 0o600))
			path := filepath.Join(dir, mutation.file)
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			changed := strings.ReplaceAll(string(content), mutation.from, mutation.to)
			require.NotEqual(t, string(content), changed, "%s has no %q", mutation.file, mutation.from)
			require.NoError(t, os.WriteFile(path, []byte(changed), 0o600))
			assert.NotEmpty(t, checkCompose(dir, known))
		})
	}
}

// migrates reports whether a service ends when the migrations are done.
func migrates(service string) bool { return strings.HasPrefix(service, "migrate") }

// imageVolumes are the folders that the official images of PostgreSQL declare as volumes.
var imageVolumes = map[string]string{"14 to 17": "/var/lib/postgresql/data", "18": "/var/lib/postgresql"}

// engineCapabilities are what an entrypoint needs that starts as root and becomes another user.
var engineCapabilities = []string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}

// checkCompose returns what is wrong with the compose files and the Dockerfile below dir.
func checkCompose(dir string, known map[string]string) problems {
	var p problems
	for _, files := range [][]string{{composeFile}, {composeFile, clusterFile}} {
		project, err := loadCompose(dir, nil, files...)
		if err != nil {
			p.check(false, "%v", err)
			continue
		}
		built := map[string]string{}
		for name, s := range project.Services {
			checkService(&p, name, s, known)
			if s.Build != nil {
				p.check(built[s.Image] == "", "%s and %s both build %s", name, built[s.Image], s.Image)
				built[s.Image] = name
			}
		}
		checkOrder(&p, project)
		checkDataFolder(&p, project.Services["postgres"])
	}
	checkDockerfile(&p, dir)
	return p
}

func checkService(p *problems, name string, s types.ServiceConfig, known map[string]string) {
	_, ours := programs[name]
	engine := slices.Contains([]string{"postgres", "clickhouse", "clickhouse-2", "keeper"}, name)
	p.check(!s.Privileged && s.NetworkMode == "" && s.Pid == "" && s.Ipc == "", "%s shares a namespace of the machine", name)
	p.check(slices.Equal(s.CapDrop, []string{"ALL"}), "%s drops the capabilities %v", name, s.CapDrop)
	if engine {
		p.check(slices.Equal(s.CapAdd, engineCapabilities), "%s has the capabilities %v", name, s.CapAdd)
	} else {
		p.check(len(s.CapAdd) == 0 && s.ReadOnly, "%s has capabilities, or may write to its root", name)
	}
	p.check(slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}), "%s may gain privileges", name)
	p.check(s.Restart != "", "%s is not restarted", name)
	p.check(s.MemLimit > 0 && s.PidsLimit > 0, "%s has no limit of memory or of processes", name)
	p.check(s.Logging != nil && s.Logging.Options["max-size"] != "" && s.Logging.Options["max-file"] != "", "%s logs without end", name)
	if engine || ours && !migrates(name) {
		p.check(s.HealthCheck != nil && !s.HealthCheck.Disable && len(s.HealthCheck.Test) > 0, "%s has no health check", name)
	}
	if ours {
		timeout, err := time.ParseDuration(known["SHUTDOWN_TIMEOUT"])
		p.check(err == nil, "SHUTDOWN_TIMEOUT: %v", err)
		if !migrates(name) {
			program := map[bool]string{true: "diehard-api", false: "diehard-streamer"}[name == "api"]
			p.check(int64(s.MemLimit) >= worstCase(program, known), "%s is killed for memory before its own limits hold", name)
		}
		p.check(s.StopGracePeriod != nil && time.Duration(*s.StopGracePeriod) >= timeout+stopMargin*time.Second, "%s is killed before its SHUTDOWN_TIMEOUT", name)
	}
	for _, port := range s.Ports {
		p.check(port.HostIP == "127.0.0.1", "%s publishes %s on %q", name, port.Published, port.HostIP)
		p.check(name != "standby", "the standby publishes a port, so that it cannot be scaled")
	}
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind {
			_, err := os.Stat(v.Source)
			p.check(err == nil, "%s mounts what is not there: %v", name, err)
			p.check(v.ReadOnly, "%s may write to %s", name, v.Source)
		}
	}
}

// checkOrder: engines are healthy before the migrations run, and these have ended well
// before anything serves.
func checkOrder(p *problems, project *types.Project) {
	for name, s := range project.Services {
		for other, d := range s.DependsOn {
			want := types.ServiceConditionHealthy
			switch other {
			case "migrate", "migrate-api":
				want = types.ServiceConditionCompletedSuccessfully
			case "prometheus":
				want = types.ServiceConditionStarted
			}
			p.check(d.Condition == want, "%s waits for %s: %s", name, other, d.Condition)
		}
		if _, ours := programs[name]; ours && name != "migrate" {
			migrations := "migrate"
			if name == "api" {
				migrations = "migrate-api"
			}
			_, waits := s.DependsOn[migrations]
			p.check(waits, "%s does not wait for %s", name, migrations)
		}
	}
	for _, engine := range []string{"postgres", "clickhouse"} {
		_, waits := project.Services["migrate"].DependsOn[engine]
		p.check(waits, "the migrations do not wait for %s", engine)
	}
}

// checkDataFolder: what PostgreSQL writes is in the named volume with every image that
// is offered, and not in a volume that an image declares below it.
func checkDataFolder(p *problems, s types.ServiceConfig) {
	below := func(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }
	data := s.Environment["PGDATA"]
	if data == nil {
		p.check(false, "PGDATA is the image's, which differs between versions")
		return
	}
	for versions, declared := range imageVolumes {
		mount := "" // the innermost one that holds the data
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeVolume && below(*data, v.Target) && len(v.Target) > len(mount) {
				mount = v.Target
			}
		}
		p.check(mount != "", "PGDATA %s is in no named volume", *data)
		p.check(!below(*data, declared) || len(mount) >= len(declared), "PostgreSQL %s: the data is in the image's volume %s, which down removes", versions, declared)
	}
}

func checkDockerfile(p *problems, dir string) {
	content, err := os.ReadFile(filepath.Join(dir, "docker/Dockerfile"))
	if err != nil {
		p.check(false, "%v", err)
		return
	}
	text := string(content)
	users := regexp.MustCompile(`(?m)^USER (.*)$`).FindAllStringSubmatch(text, -1)
	p.check(len(users) == 1 && regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(users[0][1]), "the images run as %v", users)
	p.check(regexp.MustCompile(`(?m)^FROM scratch AS bare$`).MatchString(text), "the images have more in them than a program")
	for _, target := range []string{"api", "streamer"} {
		p.check(strings.Contains(text, fmt.Sprintf("\nFROM bare AS %s\n", target)), "%s is not built on the bare image", target)
	}
	for _, label := range []string{"version", "revision", "created", "source", "url", "base.name", "licenses"} {
		p.check(strings.Contains(text, "org.opencontainers.image."+label+"="), "no label %s", label)
	}
	sources := strings.Index(text, "\nCOPY . .")
	p.check(strings.Index(text, "go mod download") < sources, "a change of the sources downloads every module again")
}
