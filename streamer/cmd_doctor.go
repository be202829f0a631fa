package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"diehard/streamer/config"
	"diehard/streamer/doctor"
	"diehard/streamer/ops"
)

// exitCode ends the program without a message: everything was said.
type exitCode int

// Error implements error.
func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything the streamer needs, and print the fix; exit code 1 for warnings, 2 for errors",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withProbe(cmd, func(ctx context.Context, cfg config.Config, probe *ops.Probe) error {
				findings := doctor.Check(ctx, doctor.Target{Probe: probe, PostgresURL: cfg.Postgres.Address(), ClickHouse: cfg.ClickHouse, InsertTimeout: cfg.Batch.InsertTimeout})
				var err error
				if asJSON {
					e := json.NewEncoder(cmd.OutOrStdout())
					e.SetIndent("", "  ")
					err = e.Encode(findings)
				} else {
					err = doctor.WriteText(cmd.OutOrStdout(), findings)
				}
				if worst := doctor.Worst(findings); err == nil && worst != doctor.OK {
					return exitCode(worst)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON, for scripts")
	return cmd
}
