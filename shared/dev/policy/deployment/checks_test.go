package deployment

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// stopMargin is what a pod gets beyond its own time to stop in.
const stopMargin = 5

// checkManifests returns what is wrong with the manifests, as the overlay in
// docker/kubernetes/example renders them. known are the names of all settings.
func checkManifests(dir string, known map[string]string) problems {
	var p problems
	m, err := build(dir, "example")
	if err != nil {
		p.check(false, "%v", err)
		return p
	}
	for _, d := range m.deployments {
		checkDeployment(&p, m, d, known)
	}
	checkServices(&p, m)
	checkBudgets(&p, m)
	checkPolicies(&p, m)
	checkMonitors(&p, m)
	p.check(len(m.deployments) == 2, "%d deployments", len(m.deployments))
	return p
}

func checkDeployment(p *problems, m manifests, d appsv1.Deployment, known map[string]string) {
	spec, name := d.Spec.Template.Spec, d.Name
	p.check(d.Namespace != "", "%s is in no namespace of the overlay", name)
	p.check(d.Spec.Replicas != nil && *d.Spec.Replicas >= 2, "%s: one alone is an outage at every update", name)
	p.check(selects(d.Spec.Selector.MatchLabels, d.Spec.Template.Labels), "%s does not select its own pods", name)
	for _, s := range spec.TopologySpreadConstraints {
		p.check(s.LabelSelector != nil && selects(s.LabelSelector.MatchLabels, d.Spec.Template.Labels), "%s spreads other pods", name)
	}
	p.check(spec.AutomountServiceAccountToken != nil && !*spec.AutomountServiceAccountToken, "%s has a token of the API", name)
	p.check(!spec.HostNetwork && !spec.HostPID && !spec.HostIPC, "%s shares a namespace of the node", name)
	pod := spec.SecurityContext
	p.check(pod != nil && pod.RunAsNonRoot != nil && *pod.RunAsNonRoot && pod.RunAsUser != nil && *pod.RunAsUser != 0, "%s runs as root", name)
	p.check(pod != nil && pod.SeccompProfile != nil && pod.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault, "%s has no seccomp profile", name)
	for _, c := range containers(d) {
		checkContainer(p, m, d, c, known)
	}
	main := spec.Containers[0]
	p.check(slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool {
		return c.Image == main.Image && slices.Equal(c.Args, []string{"migrate", "up"})
	}), "%s starts before the migrations of its version", name)
	checkProbe(p, d, main.StartupProbe, "/healthz")
	checkProbe(p, d, main.LivenessProbe, "/healthz")
	checkProbe(p, d, main.ReadinessProbe, "/readyz")
	checkGrace(p, m, d, known)
	env, _ := m.environment(main)
	if address, ok := env["API_METRICS_ADDR"]; ok {
		p.check(address == fmt.Sprintf(":%d", portNumber(d, "metrics")), "%s serves metrics at %s, its port is another", name, address)
	}
	p.check(main.Resources.Limits.Memory().Value() >= worstCase(name, known), "%s is killed for memory before its own limits hold", name)
}

// worstCase is the memory that a program takes at most, as its settings say.
func worstCase(name string, known map[string]string) int64 {
	size := func(setting string) int64 {
		quantity, err := resource.ParseQuantity(strings.TrimSuffix(known[setting], "B"))
		if err != nil {
			return math.MaxInt64
		}
		return quantity.Value()
	}
	if name == "diehard-api" {
		return 4*size("API_MAX_BODY_BYTES") + 64<<20
	}
	return 4*size("CLICKHOUSE_BATCH_BYTES") + 50<<20
}

func checkContainer(p *problems, m manifests, d appsv1.Deployment, c corev1.Container, known map[string]string) {
	name, security := d.Name+"/"+c.Name, c.SecurityContext
	if security == nil || security.Capabilities == nil {
		p.check(false, "%s has no security context", name)
		return
	}
	p.check(security.ReadOnlyRootFilesystem != nil && *security.ReadOnlyRootFilesystem, "%s may write to its root", name)
	p.check(security.AllowPrivilegeEscalation != nil && !*security.AllowPrivilegeEscalation, "%s may gain privileges", name)
	p.check(security.Privileged == nil && security.RunAsUser == nil, "%s is privileged", name)
	p.check(slices.Equal(security.Capabilities.Drop, []corev1.Capability{"ALL"}) && len(security.Capabilities.Add) == 0, "%s has capabilities", name)
	p.check(!c.Resources.Limits.Memory().IsZero() && !c.Resources.Requests.Memory().IsZero(), "%s has no limit of memory", name)
	p.check(strings.Contains(c.Image, "/") && strings.Contains(c.Image, ":"), "%s: the overlay does not choose its image %s", name, c.Image)
	env, missing := m.environment(c)
	p.check(len(missing) == 0, "%s reads what is not there: %v", name, missing)
	for key := range env {
		_, ok := known[key]
		p.check(ok, "%s sets %s, which no program reads", name, key)
	}
	p.check(env["DATABASE_URL"] != "", "%s has no DATABASE_URL", name)
	for _, path := range files(env) {
		p.check(m.mounted(d, c, path), "%s names %s, which is not mounted", name, path)
	}
}

func checkProbe(p *problems, d appsv1.Deployment, probe *corev1.Probe, path string) {
	if probe == nil || probe.HTTPGet == nil {
		p.check(false, "%s has no probe of %s", d.Name, path)
		return
	}
	p.check(probe.HTTPGet.Path == path, "%s probes %s instead of %s", d.Name, probe.HTTPGet.Path, path)
	p.check(hasPort(d, probe.HTTPGet.Port.StrVal), "%s probes the port %q, which it does not have", d.Name, probe.HTTPGet.Port.StrVal)
}

// checkGrace: a pod is given its sleep before the stop, its SHUTDOWN_TIMEOUT and a margin.
func checkGrace(p *problems, m manifests, d appsv1.Deployment, known map[string]string) {
	main := d.Spec.Template.Spec.Containers[0]
	env, _ := m.environment(main)
	value := env["SHUTDOWN_TIMEOUT"]
	if value == "" {
		value = known["SHUTDOWN_TIMEOUT"]
	}
	timeout, err := time.ParseDuration(value)
	p.check(err == nil && timeout > 0, "SHUTDOWN_TIMEOUT: %v", err)
	need := int64(timeout.Seconds()) + stopMargin
	if main.Lifecycle != nil && main.Lifecycle.PreStop != nil && main.Lifecycle.PreStop.Sleep != nil {
		need += main.Lifecycle.PreStop.Sleep.Seconds
	}
	grace := d.Spec.Template.Spec.TerminationGracePeriodSeconds
	p.check(grace != nil && *grace >= need, "%s is killed within %d s", d.Name, need)
}

func checkServices(p *problems, m manifests) {
	for _, s := range m.services {
		behind := m.selected(s.Spec.Selector)
		p.check(len(behind) == 1, "service %s selects %d deployments", s.Name, len(behind))
		for _, d := range behind {
			for _, port := range s.Spec.Ports {
				p.check(hasPort(d, port.TargetPort.StrVal), "service %s wants the port %q of %s", s.Name, port.TargetPort.StrVal, d.Name)
			}
		}
	}
	for _, d := range m.deployments {
		p.check(slices.ContainsFunc(m.services, func(s corev1.Service) bool {
			return selects(s.Spec.Selector, d.Spec.Template.Labels)
		}), "%s has no service", d.Name)
	}
}

func checkBudgets(p *problems, m manifests) {
	budgeted := map[string]bool{}
	for _, b := range m.budgets {
		behind := m.selected(b.Spec.Selector.MatchLabels)
		p.check(len(behind) == 1, "budget %s selects %d deployments", b.Name, len(behind))
		policy := b.Spec.UnhealthyPodEvictionPolicy
		p.check(policy != nil && *policy == policyv1.AlwaysAllow, "budget %s holds nodes up while pods are not ready", b.Name)
		for _, d := range behind {
			budgeted[d.Name] = true
			p.check(b.Spec.MinAvailable != nil && b.Spec.MinAvailable.IntValue() >= 1 && b.Spec.MinAvailable.IntValue() < int(*d.Spec.Replicas),
				"budget %s: a node with a pod of %s never drains, or all do at once", b.Name, d.Name)
		}
	}
	for _, d := range m.deployments {
		p.check(budgeted[d.Name], "%s has no disruption budget", d.Name)
	}
}

// databasePorts are the ports that the pods of a deployment connect to.
func databasePorts(m manifests, d appsv1.Deployment) []int {
	var ports []int
	for _, c := range containers(d) {
		env, _ := m.environment(c)
		if address, err := url.Parse(env["DATABASE_URL"]); err == nil {
			port, _ := strconv.Atoi(address.Port())
			ports = append(ports, port)
		}
		if value, ok := env["CLICKHOUSE_PORT"]; ok {
			port, _ := strconv.Atoi(value)
			ports = append(ports, port)
		}
	}
	return ports
}

func checkPolicies(p *problems, m manifests) {
	covered := map[string]bool{}
	for _, policy := range m.policies {
		behind := m.selected(policy.Spec.PodSelector.MatchLabels)
		p.check(len(behind) == 1, "network policy %s selects %d deployments", policy.Name, len(behind))
		both := slices.Contains(policy.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) &&
			slices.Contains(policy.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		p.check(both, "network policy %s leaves a direction open", policy.Name)
		for _, d := range behind {
			covered[d.Name] = true
			checkIngress(p, policy, d)
			checkEgress(p, policy, d, append(databasePorts(m, d), 53))
		}
	}
	for _, d := range m.deployments {
		p.check(covered[d.Name], "%s has no network policy", d.Name)
	}
}

func checkIngress(p *problems, policy networkingv1.NetworkPolicy, d appsv1.Deployment) {
	p.check(len(policy.Spec.Ingress) > 0, "nothing reaches %s", d.Name)
	for _, rule := range policy.Spec.Ingress {
		p.check(len(rule.Ports) > 0, "network policy %s opens every port", policy.Name)
		for _, port := range rule.Ports {
			p.check(port.Port != nil && hasPort(d, port.Port.StrVal), "network policy %s opens a port that %s does not have", policy.Name, d.Name)
			if port.Port != nil && (d.Name == "diehard-streamer" || port.Port.StrVal == "metrics") {
				p.check(len(rule.From) > 0, "network policy %s opens the metrics of %s to all", policy.Name, d.Name)
			}
		}
		for _, from := range rule.From {
			p.check(from.NamespaceSelector != nil && from.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] == "monitoring",
				"network policy %s lets others than the monitoring in", policy.Name)
		}
	}
}

func checkEgress(p *problems, policy networkingv1.NetworkPolicy, d appsv1.Deployment, ports []int) {
	open := map[int]bool{}
	for _, rule := range policy.Spec.Egress {
		p.check(len(rule.Ports) > 0, "network policy %s lets %s go anywhere", policy.Name, d.Name)
		for _, port := range rule.Ports {
			if port.Port != nil {
				open[port.Port.IntValue()] = true
			}
		}
	}
	for _, port := range ports {
		p.check(open[port], "network policy %s keeps %s from port %d", policy.Name, d.Name, port)
	}
}

func checkMonitors(p *problems, m manifests) {
	watched := map[string]bool{}
	for _, monitor := range m.monitors {
		found := false
		for _, s := range m.services {
			if !selects(monitor.Spec.Selector.MatchLabels, s.Labels) {
				continue
			}
			found, watched[s.Name] = true, true
			for _, endpoint := range monitor.Spec.Endpoints {
				p.check(slices.ContainsFunc(s.Spec.Ports, func(port corev1.ServicePort) bool { return port.Name == endpoint.Port }),
					"monitor %s wants the port %q of service %s", monitor.Name, endpoint.Port, s.Name)
				if endpoint.Authorization != nil {
					credentials := endpoint.Authorization.Credentials
					_, ok := m.secrets[credentials.Name].Data[credentials.Key]
					p.check(ok, "monitor %s wants %s of secret %s", monitor.Name, credentials.Key, credentials.Name)
				}
			}
		}
		p.check(found, "monitor %s selects no service", monitor.Name)
	}
	for _, s := range m.services {
		p.check(watched[s.Name], "service %s is not scraped", s.Name)
	}
	p.check(len(m.rules) == 1, "%d rules for the Prometheus operator", len(m.rules))
}
