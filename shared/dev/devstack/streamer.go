package main

import (
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

func streamerCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "streamer COMMAND …",
		Short:              "Run a command of the streamer on the engines that run: status, doctor, verify, …",
		DisableFlagParsing: true, // all flags belong to the streamer
		RunE:               func(_ *cobra.Command, args []string) error { return execStreamer(args) },
	}
}

// execStreamer replaces this process, so that the streamer gets the terminal and
// signals, and its exit code is ours.
func execStreamer(args []string) error {
	stack, err := runningStack()
	if err != nil {
		return err
	}
	bin, err := programDir()
	if err != nil {
		return err
	}
	program := filepath.Join(bin, "streamer")
	return syscall.Exec(program, append([]string{program}, args...), environFor(stack))
}
