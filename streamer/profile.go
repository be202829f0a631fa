package main

import (
	"fmt"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"
)

// profiled adds --cpuprofile to cmd: a profile of the whole run, for `go tool pprof`.
func profiled(cmd *cobra.Command) *cobra.Command {
	path := cmd.Flags().String("cpuprofile", "", "write a CPU profile to this file")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *path == "" {
			return run(cmd, args)
		}
		f, err := os.Create(*path)
		if err != nil {
			return fmt.Errorf("--cpuprofile: %w", err)
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("--cpuprofile: %w", err)
		}
		defer pprof.StopCPUProfile()
		return run(cmd, args)
	}
	return cmd
}
