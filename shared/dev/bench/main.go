// Command bench compares Die Hard with other ways to do the same, on the same
// machine in the same run. Compare contestants of one run, not figures of different
// machines. See README.md in this folder.
//
//	bench [drain|path|badrows|growth|latency|producer|api|peers|questions|indexes|all]
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"diehard/shared/shutdown"
)

// benchmarks by name, in the order of "all".
var benchmarks = []struct {
	name string
	run  func(ctx context.Context, env *environment) (*report, error)
}{
	{"drain", drain},
	{"path-postgres", pathPostgres},
	{"path-clickhouse", pathClickHouse},
	{"latency", latency},
	{"producer", producer},
	{"api", api},
	{"badrows", badRowsDrain},
	{"growth", growth},
	{"questions", questions},
	{"indexes", indexes},
	{"peers-drain", peersDrain},
	{"peers-latency", peersLatency},
	{"peers-exact", peersExact},
}

// errSkipped is for benchmarks that this machine cannot run.
var errSkipped = errors.New("skipped")

func main() {
	ctx, stop := shutdown.Context(context.Background())
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // stop only releases the signals
	}
}

func dispatch(ctx context.Context, args []string) error {
	which := "drain"
	if len(args) > 0 {
		which = args[0]
	}
	switch which { // contestants, started by the benchmarks
	case "idiom":
		return idiom(ctx)
	case "polling":
		return polling(ctx)
	case "discard":
		return discard(ctx, args[1:])
	}
	env, err := openEnvironment(ctx)
	if err != nil {
		return err
	}
	defer env.close()
	description, err := env.describe(ctx)
	if err != nil {
		return err
	}
	for _, b := range benchmarks {
		if which != b.name && which != "all" && !strings.HasPrefix(b.name, which+"-") {
			continue
		}
		r, err := b.run(ctx, env)
		if errors.Is(err, errSkipped) {
			env.progress("%s: %v", b.name, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		if err := r.write(os.Stdout, env.Rounds, description); err != nil {
			return err
		}
		path, err := r.plot(env.dir)
		if err != nil {
			return err
		}
		env.progress("picture: %s", path)
	}
	return nil
}
