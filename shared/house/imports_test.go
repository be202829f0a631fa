package house_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// A layer is a rank in the streamer: a package imports ranks below its own, and
// none of its own rank. Commands and configuration stand on top.
var layers = map[string]int{
	"streamer/failpoint":   0,
	"streamer/decode":      1,
	"streamer/batch":       2,
	"streamer/replication": 3,
	"streamer/sink":        3,
	"streamer/retention":   3,
	"streamer/deadletter":  4,
	"streamer/replay":      4,
	"streamer/pipeline":    5,
	"streamer/ops":         6, // watches the pipeline
	"streamer/doctor":      7,
	"streamer/config":      7, // knows the bounds of every part
	"streamer/bench":       8,
	"streamer/e2e":         8,
	"streamer/e2e/crash":   8,
	"streamer":             9,
}

// strangers never import each other, though their ranks would allow it.
var strangers = [][2]string{{"streamer/decode", "streamer/replication"}}

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

func TestStrangersStayStrangers(t *testing.T) {
	for _, p := range packages(t) {
		for _, pair := range strangers {
			for i, name := range pair {
				if p.name() == name {
					assert.NotContains(t, own(p.Imports), pair[1-i], "imports of %s", name)
				}
			}
		}
	}
}

func TestTheProgramsMeetInTheDatabaseOnly(t *testing.T) {
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

func TestSharedKnowsNoProgram(t *testing.T) {
	// Engines come with their schema: these two may know the migrations.
	mayMigrate := []string{"shared/testenv", "shared/embedded/devstack"}
	for _, p := range packages(t) {
		if !within(p.name(), "shared") || p.name() == "shared/house" {
			continue
		}
		for _, imported := range own(slices.Concat(p.Imports, p.TestImports, p.XTestImports)) {
			assert.Falsef(t, within(imported, "api") || within(imported, "streamer"), "%s imports %s", p.name(), imported)
		}
		for _, imported := range own(p.Imports) {
			migrates := within(imported, "migrations") && !slices.Contains(mayMigrate, p.name())
			assert.Falsef(t, migrates, "%s imports %s", p.name(), imported)
		}
	}
}

func TestTestHelpersStayInTests(t *testing.T) {
	helpers := []string{"shared/testenv", "shared/testenv/browser", "shared/telemetry/sentrytest"}
	for _, p := range packages(t) {
		if slices.Contains(helpers, p.name()) || p.name() == "streamer/bench" {
			continue
		}
		for _, helper := range helpers {
			assert.NotContains(t, own(p.Imports), helper, "imports of %s", p.name())
		}
	}
}

// within reports whether name is the package folder or below it.
func within(name, folder string) bool {
	return name == folder || strings.HasPrefix(name, folder+"/")
}
