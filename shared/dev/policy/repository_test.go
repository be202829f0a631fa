package policy_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// module is the module's path and the prefix of its packages; see make module.
var module = func() string {
	content, err := os.ReadFile("../../../go.mod")
	if err != nil {
		panic(err)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	return strings.TrimPrefix(first, "module ")
}()

// goPackage is what `go list -json` says about a package.
type goPackage struct {
	ImportPath, Dir                    string
	GoFiles                            []string
	Imports, TestImports, XTestImports []string
}

// name is the import path within the module: "streamer/decode".
func (p goPackage) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// own returns those of imports that are packages of the module, by name.
func own(imports []string) []string {
	var names []string
	for _, path := range imports {
		if name, ok := strings.CutPrefix(path, module+"/"); ok {
			names = append(names, name)
		}
	}
	return names
}

// root is the top folder of the repository.
func root(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../..")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(path, "go.mod"))
	return path
}

var listOnce = sync.OnceValues(func() ([]byte, error) {
	list := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", "./...")
	list.Dir = "../../.."
	list.Stderr = os.Stderr
	return list.Output()
})

// packages returns every package of the module.
func packages(t *testing.T) []goPackage {
	t.Helper()
	output, err := listOnce()
	require.NoError(t, err, "go list ./...")
	var all []goPackage
	decoder := json.NewDecoder(bytes.NewReader(output))
	for decoder.More() {
		var next goPackage
		require.NoError(t, decoder.Decode(&next))
		all = append(all, next)
	}
	require.Greater(t, len(all), 5, "go list found too little to be true")
	return all
}
