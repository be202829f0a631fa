package telemetry

import (
	"runtime/debug"
	"sync"
)

// BuildInfo says which code is running.
type BuildInfo struct {
	Version string // module version, or "devel" when built without version control
	Commit  string // revision of the source, "" if unknown; "+dirty" if it had changes
	Go      string // version of the compiler
}

// Set by the linker where there is no version control to read, as in docker/Dockerfile.
var version, commit string

// Build returns what the linker recorded about the running binary.
var Build = sync.OnceValue(func() BuildInfo {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return BuildInfo{Version: "devel"}
	}
	build := readBuild(info)
	if version != "" {
		build.Version, build.Commit = version, commit
	}
	return build
})

func readBuild(info *debug.BuildInfo) BuildInfo {
	build := BuildInfo{Version: info.Main.Version, Go: info.GoVersion}
	if build.Version == "" || build.Version == "(devel)" {
		build.Version = "devel"
	}
	dirty := false
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			build.Commit = setting.Value
		case "vcs.modified":
			dirty = setting.Value == "true"
		}
	}
	if dirty && build.Commit != "" {
		build.Commit += "+dirty"
	}
	return build
}

// Release is the version as Sentry and /metrics show it: diehard@v1.2.3.
func (b BuildInfo) Release() string {
	return "diehard@" + b.Version
}
