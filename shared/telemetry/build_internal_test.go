package telemetry

import (
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestReadBuild(t *testing.T) {
	info := &debug.BuildInfo{
		GoVersion: "go1.26.8",
		Main:      debug.Module{Version: "v1.2.3"},
		Settings:  []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.time", Value: "2026-11-24T20:15:00Z"}, {Key: "vcs.modified", Value: "true"}},
	}
	assert.Equal(t, BuildInfo{Version: "v1.2.3", Commit: "abc+dirty", Date: "2026-11-24T20:15:00Z", Go: "go1.26.8"}, readBuild(info))
	assert.Equal(t, "v1.2.3 (commit abc+dirty, date 2026-11-24T20:15:00Z, go1.26.8)", readBuild(info).String())
	assert.Equal(t, "diehard@v1.2.3", readBuild(info).Release())

	info.Main.Version, info.Settings = "(devel)", nil
	assert.Equal(t, BuildInfo{Version: "devel", Go: "go1.26.8"}, readBuild(info))
}
