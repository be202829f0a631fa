package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"diehard/api/keys"
)

func keyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "key [NAME]",
		Short: "Print a new key for a caller, and its hash for API_KEYS",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := append(args, "")[0]
			secret, entry, err := keys.New(name)
			if err != nil {
				return usageError{err}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(),
				"key for the caller, shown only now:  %s\nhash for API_KEYS:                   %s\n", secret, entry)
			return err
		},
	}
}
