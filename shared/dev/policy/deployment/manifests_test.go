package deployment

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// manifests are the objects that kubectl apply -k would send, by kind.
type manifests struct {
	deployments []appsv1.Deployment
	services    []corev1.Service
	budgets     []policyv1.PodDisruptionBudget
	policies    []networkingv1.NetworkPolicy
	configs     map[string]corev1.ConfigMap
	secrets     map[string]corev1.Secret
	monitors    []monitoringv1.ServiceMonitor
	rules       []monitoringv1.PrometheusRule
}

// build renders a folder of kustomize below dir and decodes every object strictly: a
// field that the API does not know is an error.
func build(dir, folder string) (manifests, error) {
	m := manifests{configs: map[string]corev1.ConfigMap{}, secrets: map[string]corev1.Secret{}}
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(dir, folder))
	if err != nil {
		return m, err
	}
	text, err := rendered.AsYaml()
	if err != nil {
		return m, err
	}
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		if err := m.add(document); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (m *manifests) add(document []byte) error {
	var meta struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
	}
	if err := yaml.Unmarshal(document, &meta); err != nil {
		return err
	}
	var err error
	switch meta.APIVersion + " " + meta.Kind {
	case "apps/v1 Deployment":
		m.deployments, err = appendStrict(m.deployments, document)
	case "v1 Service":
		m.services, err = appendStrict(m.services, document)
	case "policy/v1 PodDisruptionBudget":
		m.budgets, err = appendStrict(m.budgets, document)
	case "networking.k8s.io/v1 NetworkPolicy":
		m.policies, err = appendStrict(m.policies, document)
	case "v1 ConfigMap":
		var one []corev1.ConfigMap
		if one, err = appendStrict(one, document); err == nil {
			m.configs[meta.Name] = one[0]
		}
	case "v1 Secret":
		var one []corev1.Secret
		if one, err = appendStrict(one, document); err == nil {
			m.secrets[meta.Name] = one[0]
		}
	case "monitoring.coreos.com/v1 ServiceMonitor":
		m.monitors, err = appendStrict(m.monitors, document)
	case "monitoring.coreos.com/v1 PrometheusRule":
		m.rules, err = appendStrict(m.rules, document)
	default:
		err = fmt.Errorf("unknown kind %s %s", meta.APIVersion, meta.Kind)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", meta.Kind, meta.Name, err)
	}
	return nil
}

func appendStrict[T any](to []T, document []byte) ([]T, error) {
	var object T
	if err := yaml.UnmarshalStrict(document, &object); err != nil {
		return to, err
	}
	return append(to, object), nil
}

// problems collects what is wrong, so that a mutation shows all that it breaks.
type problems []string

func (p *problems) check(ok bool, format string, args ...any) {
	if !ok {
		*p = append(*p, fmt.Sprintf(format, args...))
	}
}

// selects reports whether a selector of labels takes in the labels of a pod.
func selects(selector, labels map[string]string) bool {
	if len(selector) == 0 {
		return false
	}
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return true
}

// selected returns the deployments whose pods a selector takes in.
func (m manifests) selected(selector map[string]string) []appsv1.Deployment {
	var found []appsv1.Deployment
	for _, d := range m.deployments {
		if selects(selector, d.Spec.Template.Labels) {
			found = append(found, d)
		}
	}
	return found
}

// containers are all of a pod, those that run first included.
func containers(d appsv1.Deployment) []corev1.Container {
	spec := d.Spec.Template.Spec
	return append(append([]corev1.Container{}, spec.InitContainers...), spec.Containers...)
}

// environment is what the container's config maps and secrets set.
func (m manifests) environment(c corev1.Container) (env map[string]string, missing []string) {
	env = map[string]string{}
	for _, from := range c.EnvFrom {
		if from.ConfigMapRef != nil {
			config, ok := m.configs[from.ConfigMapRef.Name]
			if !ok {
				missing = append(missing, "config map "+from.ConfigMapRef.Name)
			}
			for key, value := range config.Data {
				env[key] = value
			}
		}
		if from.SecretRef != nil {
			secret, ok := m.secrets[from.SecretRef.Name]
			if !ok {
				missing = append(missing, "secret "+from.SecretRef.Name)
			}
			for key, value := range secret.Data {
				env[key] = string(value)
			}
		}
	}
	for _, v := range c.Env {
		env[v.Name] = v.Value
	}
	return env, missing
}

// hasPort reports whether a container of the pod listens on a port of that name.
func hasPort(d appsv1.Deployment, name string) bool { return portNumber(d, name) != 0 }

// portNumber is what a named port of the pod is, 0 if it has none.
func portNumber(d appsv1.Deployment, name string) int32 {
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == name {
				return p.ContainerPort
			}
		}
	}
	return 0
}

var absolutePath = regexp.MustCompile(`/etc/[\w./-]+`)

// files are the paths that a container's settings name.
func files(env map[string]string) []string {
	var paths []string
	for _, value := range env {
		paths = append(paths, absolutePath.FindAllString(value, -1)...)
	}
	return paths
}

// mounted reports whether a path is a key of a config map or secret that is mounted there.
func (m manifests) mounted(d appsv1.Deployment, c corev1.Container, path string) bool {
	for _, mount := range c.VolumeMounts {
		key, inside := strings.CutPrefix(path, strings.TrimSuffix(mount.MountPath, "/")+"/")
		if !inside {
			continue
		}
		for _, v := range d.Spec.Template.Spec.Volumes {
			if v.Name == mount.Name && v.ConfigMap != nil {
				_, ok := m.configs[v.ConfigMap.Name].Data[key]
				return ok
			}
		}
	}
	return false
}
