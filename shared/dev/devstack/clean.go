package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"diehard/shared/dev/embedded"
)

func cleanCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clean",
		Short: "Stop all engines and delete everything local, data included",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := stopDevelopment(cmd.Context()); err != nil {
				return err
			}
			if err := stopTests(cmd.Context()); err != nil {
				return err
			}
			return removeState()
		},
	}
}

// removeState deletes the development folder and the targets of the links in it.
func removeState() error {
	dev, err := embedded.DevDir()
	if err != nil {
		return err
	}
	test, err := embedded.TestDir()
	if err != nil {
		return err
	}
	engines := filepath.Join(dev, "engines") // engines of DIEHARD_ENGINES_DIR stay
	dirs := []string{engines}
	for _, version := range embedded.PostgresVersions {
		dirs = append(dirs, embedded.PostgresDir(dev, version), embedded.PostgresDir(test, version))
	}
	for _, dir := range dirs {
		if err := embedded.Remove(dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(dev)
}
