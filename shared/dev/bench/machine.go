package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/jackc/pgx/v5"

	"diehard/shared/clickhouse"
)

// describe names the machine and the versions that were measured.
func (env *environment) describe(ctx context.Context) (string, error) {
	admin, err := pgx.Connect(ctx, env.pgURL("postgres"))
	if err != nil {
		return "", err
	}
	defer admin.Close(ctx)
	var postgres string
	if err := admin.QueryRow(ctx, "SHOW server_version").Scan(&postgres); err != nil {
		return "", err
	}
	conn, err := clickhouse.Open(ctx, env.chConfig)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	server, err := conn.ServerVersion()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d cores of %s; TCP congestion control %s; PostgreSQL %s, ClickHouse %s, %s; commit %s",
		runtime.NumCPU(), cpuModel(), congestionControl(), postgres, server.Version, runtime.Version(), commit()), nil
}

// congestionControl is named because it decides how often a reader with a full window gets whole
// segments: BBR paces what it sends.
func congestionControl() string {
	name, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(name))
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "model name"); ok {
			return strings.TrimLeft(name, "\t :")
		}
	}
	return runtime.GOARCH
}

func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, changed := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) > 12:
			revision = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = " with changes"
		}
	}
	return revision + changed
}
