package telemetry

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"sync"
)

// BuildInfo says which code is running.
type BuildInfo struct {
	Version string // module version, or "devel" when built without version control
	Commit  string // revision of the source, "" if unknown; "+dirty" if it had changes
	Date    string // of that revision, RFC 3339, "" if unknown
	Go      string // version of the compiler
}

// Set by the linker where the sources have no version control, as in docker/Dockerfile.
var version, commit, date string

// Build returns what the linker recorded about the running binary.
var Build = sync.OnceValue(func() BuildInfo {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return BuildInfo{Version: "devel"}
	}
	build := readBuild(info)
	if version != "" {
		build.Version, build.Commit, build.Date = version, commit, date
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
		case "vcs.time":
			build.Date = setting.Value
		case "vcs.modified":
			dirty = setting.Value == "true"
		}
	}
	if dirty && build.Commit != "" {
		build.Commit += "+dirty"
	}
	return build
}

// Release is the name of the release in Sentry: diehard@v1.2.3.
func (b BuildInfo) Release() string {
	return "diehard@" + b.Version
}

// String is what --version prints after the program's name.
func (b BuildInfo) String() string {
	return fmt.Sprintf("%s (commit %s, date %s, %s)", b.Version, cmp.Or(b.Commit, "unknown"), cmp.Or(b.Date, "unknown"), b.Go)
}
