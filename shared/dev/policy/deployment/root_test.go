package deployment

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// root is the top folder of the repository, from the folder of the tests.
const root = "../../../.."

// By hand, after docker/prometheus/alerts.yml has changed: go test . -update
var update = flag.Bool("update", false, "rewrite docker/kubernetes/monitoring/alerts.yaml")

// read returns a file of the repository.
func read(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return content
}
