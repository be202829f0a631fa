package policy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// layers ranks the streamer's packages: each imports lower ranks only. Commands
// and configuration have the highest.
var layers = map[string]int{
	"streamer/failpoint":            0,
	"streamer/decode":               1,
	"streamer/batch":                2,
	"streamer/replication":          3,
	"streamer/replication/coalesce": 0,
	"streamer/sink":                 3,
	"streamer/retention":            3,
	"streamer/deadletter":           4,
	"streamer/events":               4,
	"streamer/replay":               4,
	"streamer/pipeline":             5,
	"streamer/ops":                  6, // observes the pipeline
	"streamer/doctor":               7,
	"streamer/config":               7, // reads the settings of every part
	"streamer/e2e":                  8,
	"streamer/e2e/crash":            8,
	"streamer":                      9,
	"streamer/sim/simnet":           0, // the simulation's models know none of the others
	"streamer/sim/simpg":            0,
	"streamer/sim/simch":            0,
	"streamer/sim":                  8,
}

// independent packages do not import each other, although their ranks allow it.
var independent = [][2]string{{"streamer/decode", "streamer/replication"}}

func TestTheStreamerImportsDownwardsOnly(t *testing.T) {
	for _, p := range packages(t) {
		if !within(p.name(), "streamer") {
			continue
		}
		rank, known := layers[p.name()]
		if !assert.Truef(t, known, "%s has no layer: give it one in this file", p.name()) {
			continue
		}
		for _, imported := range own(p.Imports) {
			if within(imported, "streamer") {
				assert.Lessf(t, layers[imported], rank, "%s imports %s", p.name(), imported)
			}
		}
	}
}

func TestIndependentPackagesStayIndependent(t *testing.T) {
	for _, p := range packages(t) {
		for _, pair := range independent {
			for i, name := range pair {
				if p.name() == name {
					assert.NotContains(t, own(p.Imports), pair[1-i], "imports of %s", name)
				}
			}
		}
	}
}

func TestTheProgramsDoNotImportEachOther(t *testing.T) {
	for _, p := range packages(t) {
		all := own(slices.Concat(p.Imports, p.TestImports, p.XTestImports))
		for _, imported := range all {
			switch {
			case within(p.name(), "api"):
				assert.Falsef(t, within(imported, "streamer"), "%s imports %s", p.name(), imported)
			case within(p.name(), "streamer"):
				assert.Falsef(t, within(imported, "api"), "%s imports %s", p.name(), imported)
			}
		}
	}
}

func TestSharedImportsNoProgramAndNoMigrations(t *testing.T) {
	for _, p := range packages(t) {
		if !within(p.name(), "shared") || within(p.name(), devTree) {
			continue
		}
		for _, imported := range own(slices.Concat(p.Imports, p.TestImports, p.XTestImports)) {
			assert.Falsef(t, within(imported, "api") || within(imported, "streamer"), "%s imports %s", p.name(), imported)
		}
		for _, imported := range own(p.Imports) {
			assert.Falsef(t, within(imported, "migrations"), "%s imports %s", p.name(), imported)
		}
	}
}

// devTree holds what is for development, tests and benchmarks alone.
const devTree = "shared/dev"

func TestNothingThatShipsImportsDevelopmentTools(t *testing.T) {
	for _, p := range packages(t) {
		if within(p.name(), devTree) {
			continue
		}
		for _, imported := range own(p.Imports) {
			assert.Falsef(t, within(imported, devTree), "%s imports %s", p.name(), imported)
		}
	}
}

// within reports whether name is the package folder or below it.
func within(name, folder string) bool {
	return name == folder || strings.HasPrefix(name, folder+"/")
}
