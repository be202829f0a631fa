package deployment

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// settings are the names and defaults of all variables, which .env.example has by test.
func settings(t *testing.T) map[string]string {
	t.Helper()
	known := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(read(t, ".env.example")))
	assignment := regexp.MustCompile(`^#([A-Z][A-Z_0-9]+)=(.*)$`)
	for lines.Scan() {
		if found := assignment.FindStringSubmatch(lines.Text()); found != nil {
			known[found[1]] = found[2]
		}
	}
	require.Greater(t, len(known), 30)
	return known
}

const kubernetes = "docker/kubernetes"

func TestManifestsFitTogether(t *testing.T) {
	assert.Empty(t, checkManifests(filepath.Join(root, kubernetes), settings(t)))
}

// The rules for the Prometheus operator are those for Prometheus.
func TestRulesOfTheOperatorAreTheAlerts(t *testing.T) {
	var rules struct {
		Groups []monitoringv1.RuleGroup `json:"groups"`
	}
	require.NoError(t, yaml.UnmarshalStrict(read(t, "docker/prometheus/alerts.yml"), &rules))
	want := monitoringv1.PrometheusRule{
		TypeMeta:   metav1.TypeMeta{APIVersion: "monitoring.coreos.com/v1", Kind: "PrometheusRule"},
		ObjectMeta: metav1.ObjectMeta{Name: "diehard"},
		Spec:       monitoringv1.PrometheusRuleSpec{Groups: rules.Groups},
	}
	content, err := yaml.Marshal(want)
	require.NoError(t, err)
	content = append([]byte("# Written by go test in shared/dev/policy/deployment from docker/prometheus/alerts.yml.\n"), content...)
	path := filepath.Join(root, kubernetes, "monitoring/alerts.yaml")
	if *update {
		require.NoError(t, os.WriteFile(path, content, 0o644))
	}
	assert.Equal(t, string(content), string(read(t, kubernetes+"/monitoring/alerts.yaml")), "the alerts have changed: go test . -update in shared/dev/policy/deployment")
}

// A change of a setting or a secret gives the pods that read it another template.
func TestAChangeRestartsThePods(t *testing.T) {
	before, err := build(filepath.Join(root, kubernetes), "example")
	require.NoError(t, err)
	for file, programs := range map[string]string{
		"base/settings.env": "diehard-api diehard-streamer", "base/clickhouse.env": "diehard-streamer",
		"example/api.env": "diehard-api", "example/streamer.env": "diehard-streamer", "example/ca.crt": "diehard-api diehard-streamer",
	} {
		dir := copyManifests(t)
		appendTo(t, filepath.Join(dir, file), "\nLOG_LEVEL2=debug\n")
		after, err := build(dir, "example")
		require.NoError(t, err, file)
		for i, d := range before.deployments {
			if strings.Contains(programs, d.Name) {
				assert.NotEqual(t, d.Spec.Template, after.deployments[i].Spec.Template, "%s: %s", file, d.Name)
			}
		}
	}
}

// mutations are mistakes that a check must see: a file, what stands there, and what is written instead.
var mutations = []struct{ name, file, from, to string }{
	{"no grace period", "base/api.yaml", "      terminationGracePeriodSeconds: 45\n", ""},
	{"a grace period of 30 s", "base/streamer.yaml", "terminationGracePeriodSeconds: 40", "terminationGracePeriodSeconds: 30"},
	{"SHUTDOWN_TIMEOUT above the grace period", "base/settings.env", "LOG_LEVEL=info", "SHUTDOWN_TIMEOUT=60s"},
	{"a network policy for other pods", "base/policies.yaml", "matchLabels: {app.kubernetes.io/name: diehard-streamer}", "matchLabels: {app.kubernetes.io/name: streamer}"},
	{"a network policy for another port", "base/policies.yaml", "port: http}", "port: web}"},
	{"no way to PostgreSQL", "base/policies.yaml", "        - {protocol: TCP, port: 5432}\n", ""},
	{"no way to ClickHouse", "base/clickhouse.env", "CLICKHOUSE_PORT=9440", "CLICKHOUSE_PORT=9000"},
	{"no names resolved", "base/policies.yaml", "port: 53", "port: 5353"},
	{"the page open to all", "base/policies.yaml", "    - from:\n        - namespaceSelector:\n            matchLabels: {kubernetes.io/metadata.name: monitoring}\n      ports:", "    - ports:"},
	{"egress left open", "base/policies.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress]"},
	{"a budget of 2 of 2", "base/api.yaml", "minAvailable: 1", "minAvailable: 2"},
	{"a budget for other pods", "base/streamer.yaml", "  selector:\n    matchLabels: {app.kubernetes.io/name: diehard-streamer}\n", "  selector:\n    matchLabels: {app.kubernetes.io/name: streamer}\n"},
	{"a budget that holds up a drain", "base/api.yaml", "  unhealthyPodEvictionPolicy: AlwaysAllow\n", ""},
	{"a service port that no pod has", "base/api.yaml", "targetPort: http", "targetPort: web"},
	{"a service for other pods", "base/api.yaml", "  selector: {app.kubernetes.io/name: diehard-api}", "  selector: {app.kubernetes.io/name: api}"},
	{"a monitor of a port that no service has", "monitoring/monitors.yaml", "port: metrics", "port: metricz"},
	{"a monitor of another service", "monitoring/monitors.yaml", "app.kubernetes.io/name: diehard-streamer", "app.kubernetes.io/name: streamer"},
	{"an authority at no mounted path", "example/api.env", "sslrootcert=/etc/diehard/ca.crt", "sslrootcert=/etc/ssl/ca.crt"},
	{"an authority that is not in the map", "example/migrate.env", "/etc/diehard/ca.crt", "/etc/diehard/root.crt"},
	{"a capability", "base/streamer.yaml", "capabilities: {drop: [ALL]}", "capabilities: {drop: [ALL], add: [SYS_ADMIN]}"},
	{"root", "base/api.yaml", "runAsUser: 65532", "runAsUser: 0"},
	{"no limit of memory", "base/api.yaml", "            limits: {memory: 256Mi}\n", ""},
	{"metrics open to all", "base/policies.yaml", "    - from:\n        - namespaceSelector:\n            matchLabels: {kubernetes.io/metadata.name: monitoring}\n      ports:\n        - {protocol: TCP, port: metrics}", "    - ports:\n        - {protocol: TCP, port: metrics}"},
	{"metrics at another port", "base/api.yaml", "containerPort: 8082", "containerPort: 8083"},
	{"too little memory", "base/api.yaml", "limits: {memory: 256Mi}", "limits: {memory: 128Mi}"},
	{"no migrations before the api", "base/api.yaml", "args: [migrate, up]", "args: [migrate, status]"},
	{"migrations of another version", "base/streamer.yaml", "        - name: migrate\n          image: diehard-streamer", "        - name: migrate\n          image: diehard-api"},
	{"one pod", "base/streamer.yaml", "replicas: 2", "replicas: 1"},
	{"a misspelt field", "base/api.yaml", "readinessProbe:", "readynessProbe:"},
	{"a probe of another path", "base/api.yaml", "path: /readyz", "path: /ready"},
	{"no startup probe", "base/api.yaml", "startupProbe:", "#"},
	{"a setting that does not exist", "base/settings.env", "LOG_LEVEL=info", "LOGLEVEL=info"},
	{"a secret that does not exist", "example/kustomization.yaml", "name: diehard-streamer, envs", "name: diehard-streamers, envs"},
	{"an image that the overlay does not choose", "example/kustomization.yaml", "name: diehard-streamer, newName", "name: streamer, newName"},
}

func TestMistakesInManifestsAreSeen(t *testing.T) {
	known := settings(t)
	for _, mutation := range mutations {
		t.Run(mutation.name, func(t *testing.T) {
			dir := copyManifests(t)
			path := filepath.Join(dir, mutation.file)
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			changed := strings.ReplaceAll(string(content), mutation.from, mutation.to)
			require.NotEqual(t, string(content), changed, "%s has no %q", mutation.file, mutation.from)
			require.NoError(t, os.WriteFile(path, []byte(changed), 0o600))
			assert.NotEmpty(t, checkManifests(dir, known))
		})
	}
}

func copyManifests(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(root, kubernetes)).(fs.FS)))
	return dir
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(content, text...), 0o600))
}
