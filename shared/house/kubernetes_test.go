package house_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// shutdownSeconds is the default of SHUTDOWN_TIMEOUT, which pods must be granted.
const shutdownSeconds = 30

// serviceMonitor is what we use of the Prometheus operator's kind.
type serviceMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Selector  metav1.LabelSelector `json:"selector"`
		Endpoints []struct {
			Port     string `json:"port"`
			Interval string `json:"interval"`

			Authorization struct {
				Credentials corev1.SecretKeySelector `json:"credentials"`
			} `json:"authorization"`
		} `json:"endpoints"`
	} `json:"spec"`
}

// manifests are the objects of docker/kubernetes, by kind.
type manifests struct {
	deployments []appsv1.Deployment
	jobs        []batchv1.Job
	services    []corev1.Service
	budgets     []policyv1.PodDisruptionBudget
	policies    []networkingv1.NetworkPolicy
	configs     []corev1.ConfigMap
	secrets     []corev1.Secret
	monitors    []serviceMonitor
}

// readManifests decodes strictly: a field that the API does not know fails.
func readManifests(t *testing.T) manifests {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root(t), "docker/kubernetes/*.yaml"))
	require.NoError(t, err)
	var m manifests
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		for document := range bytes.SplitSeq(content, []byte("\n---\n")) {
			m.add(t, filepath.Base(file), document)
		}
	}
	return m
}

func (m *manifests) add(t *testing.T, file string, document []byte) {
	t.Helper()
	var meta metav1.TypeMeta
	require.NoError(t, yaml.Unmarshal(document, &meta), file)
	switch meta.APIVersion + " " + meta.Kind {
	case "apps/v1 Deployment":
		m.deployments = append(m.deployments, strict[appsv1.Deployment](t, file, document))
	case "batch/v1 Job":
		m.jobs = append(m.jobs, strict[batchv1.Job](t, file, document))
	case "v1 Service":
		m.services = append(m.services, strict[corev1.Service](t, file, document))
	case "policy/v1 PodDisruptionBudget":
		m.budgets = append(m.budgets, strict[policyv1.PodDisruptionBudget](t, file, document))
	case "networking.k8s.io/v1 NetworkPolicy":
		m.policies = append(m.policies, strict[networkingv1.NetworkPolicy](t, file, document))
	case "v1 ConfigMap":
		m.configs = append(m.configs, strict[corev1.ConfigMap](t, file, document))
	case "v1 Secret":
		m.secrets = append(m.secrets, strict[corev1.Secret](t, file, document))
	case "monitoring.coreos.com/v1 ServiceMonitor":
		m.monitors = append(m.monitors, strict[serviceMonitor](t, file, document))
	default:
		require.Fail(t, "unknown kind", "%s: %s %s", file, meta.APIVersion, meta.Kind)
	}
}

func strict[T any](t *testing.T, file string, document []byte) T {
	t.Helper()
	var object T
	require.NoError(t, yaml.UnmarshalStrict(document, &object), file)
	return object
}

// pods are the templates of everything that runs.
func (m manifests) pods() map[string]corev1.PodTemplateSpec {
	all := map[string]corev1.PodTemplateSpec{}
	for _, d := range m.deployments {
		all[d.Name] = d.Spec.Template
	}
	for _, j := range m.jobs {
		all[j.Name] = j.Spec.Template
	}
	return all
}

func TestKubernetesObjectsFitTogether(t *testing.T) {
	m := readManifests(t)
	var deployments, services, budgets, monitors []string
	for _, d := range m.deployments {
		deployments = append(deployments, d.Name)
		assert.Equal(t, d.Spec.Selector.MatchLabels, d.Spec.Template.Labels, d.Name)
		assert.GreaterOrEqual(t, *d.Spec.Replicas, int32(2), "%s: one alone is an outage at every update", d.Name)
		c := d.Spec.Template.Spec.Containers[0]
		assert.Equal(t, "/healthz", c.LivenessProbe.HTTPGet.Path, d.Name)
		assert.Equal(t, "/readyz", c.ReadinessProbe.HTTPGet.Path, d.Name)
		assert.Equal(t, c.Ports[0].Name, c.ReadinessProbe.HTTPGet.Port.StrVal, d.Name)
	}
	for _, s := range m.services {
		services = append(services, s.Name)
		assert.Equal(t, s.Name, s.Spec.Selector["app.kubernetes.io/name"])
	}
	for _, b := range m.budgets {
		budgets = append(budgets, b.Name)
		assert.Equal(t, b.Name, b.Spec.Selector.MatchLabels["app.kubernetes.io/name"])
	}
	for _, s := range m.monitors {
		monitors = append(monitors, s.Name)
		assert.Equal(t, s.Name, s.Spec.Selector.MatchLabels["app.kubernetes.io/name"])
	}
	want := []string{"diehard-api", "diehard-streamer"}
	for what, have := range map[string][]string{"deployments": deployments, "services": services, "budgets": budgets, "monitors": monitors} {
		assert.ElementsMatch(t, want, have, what)
	}
	require.Len(t, m.policies, 1)
	require.Len(t, m.jobs, 1)
}

func TestKubernetesPodsMayDoNothingButTheirWork(t *testing.T) {
	for name, pod := range readManifests(t).pods() {
		spec := pod.Spec
		assert.True(t, *spec.SecurityContext.RunAsNonRoot, name)
		assert.NotZero(t, *spec.SecurityContext.RunAsUser, name)
		assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, spec.SecurityContext.SeccompProfile.Type, name)
		assert.False(t, *spec.AutomountServiceAccountToken, name)
		require.Len(t, spec.Containers, 1, name)
		c := spec.Containers[0]
		assert.True(t, *c.SecurityContext.ReadOnlyRootFilesystem, name)
		assert.False(t, *c.SecurityContext.AllowPrivilegeEscalation, name)
		assert.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop, name)
		assert.NotZero(t, c.Resources.Limits.Memory().Value(), name)
		if spec.TerminationGracePeriodSeconds != nil {
			grace := *spec.TerminationGracePeriodSeconds
			if c.Lifecycle != nil {
				grace -= c.Lifecycle.PreStop.Sleep.Seconds
			}
			assert.Greater(t, grace, int64(shutdownSeconds), "%s is killed before its SHUTDOWN_TIMEOUT", name)
		}
	}
}

func TestKubernetesSettingsExist(t *testing.T) {
	known, m := known(), readManifests(t)
	offered := map[string]bool{}
	for _, c := range m.configs {
		offered[c.Name] = true
		for name := range c.Data {
			assert.True(t, known[name], "config map %s sets %s, which nobody reads", c.Name, name)
		}
	}
	keys := map[string]bool{} // that monitors want of secrets
	for _, monitor := range m.monitors {
		if c := monitor.Spec.Endpoints[0].Authorization.Credentials; c.Name != "" {
			keys[c.Name+" "+c.Key] = true
		}
	}
	for _, s := range m.secrets {
		offered[s.Name] = true
		for name := range s.StringData {
			assert.True(t, known[name] || keys[s.Name+" "+name], "secret %s sets %s, which nobody reads", s.Name, name)
			delete(keys, s.Name+" "+name)
		}
	}
	assert.Empty(t, keys, "monitors want keys of secrets that are not there")
	for name, pod := range m.pods() {
		for _, from := range pod.Spec.Containers[0].EnvFrom {
			if from.ConfigMapRef != nil {
				assert.True(t, offered[from.ConfigMapRef.Name], "%s wants config map %s", name, from.ConfigMapRef.Name)
			} else {
				assert.True(t, offered[from.SecretRef.Name], "%s wants secret %s", name, from.SecretRef.Name)
			}
		}
	}
}

func TestKustomizationListsTheManifests(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(root(t), "docker/kubernetes/kustomization.yaml"))
	require.NoError(t, err)
	k := strict[struct {
		metav1.TypeMeta `json:",inline"`
		Resources       []string `json:"resources"`
		Labels          []struct {
			Pairs map[string]string `json:"pairs"`
		} `json:"labels"`
	}](t, "kustomization.yaml", content)
	files, err := filepath.Glob(filepath.Join(root(t), "docker/kubernetes/*.yaml"))
	require.NoError(t, err)
	have := map[string]bool{}
	for _, file := range files {
		have[filepath.Base(file)] = true
	}
	for _, name := range k.Resources {
		assert.True(t, have[name], name)
		delete(have, name)
	}
	// To be applied by those who want them.
	assert.Equal(t, map[string]bool{"kustomization.yaml": true, "secrets.example.yaml": true, "monitoring.yaml": true}, have)
}
