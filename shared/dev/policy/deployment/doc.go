// Package deployment tests what is in docker/: the alert rules with Prometheus' own
// engine, the manifests with kustomize and the types of Kubernetes' API. It is a
// module of its own, so that the product does not depend on theirs.
package deployment
