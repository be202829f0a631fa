// Command bench measures Die Hard beside other ways to do the same, on the same
// machine in the same run. Every figure it prints is a ratio's half: compare
// columns, not machines. See README.md in this folder.
//
//	bench [drain|growth|latency|producer|api|all]
package main

import (
	"context"
	"fmt"
	"os"

	"diehard/shared/run"
)

// benchmarks by name, in the order of "all".
var benchmarks = []struct {
	name string
	run  func(ctx context.Context, l *lab) (*report, error)
}{
	{"drain", drain},
	{"latency", latency},
	{"producer", producer},
	{"api", api},
	{"growth", growth},
}

func main() {
	ctx, stop := run.Context(context.Background())
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
	switch which { // contestants, started by ourselves
	case "idiom":
		return idiom(ctx)
	case "polling":
		return polling(ctx)
	}
	l, err := openLab(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	where, err := l.where(ctx)
	if err != nil {
		return err
	}
	for _, b := range benchmarks {
		if which != b.name && which != "all" {
			continue
		}
		r, err := b.run(ctx, l)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		if err := r.write(os.Stdout, l.Rounds, where); err != nil {
			return err
		}
		path, err := r.plot(l.dir)
		if err != nil {
			return err
		}
		l.progress("the same as a picture: %s", path)
	}
	return nil
}
