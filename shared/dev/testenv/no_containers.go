//go:build !containers

package testenv

import "errors"

// containersBackend is left out of ordinary builds: Docker's client would more
// than double the size of every test program.
func containersBackend() (*backend, error) {
	return nil, errors.New("TEST_BACKEND=containers needs go test -tags containers; make test-containers does that")
}
