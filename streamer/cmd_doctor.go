package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"diehard/shared/settings"
	"diehard/streamer/config"
	"diehard/streamer/doctor"
)

// exitCode ends the program without a message: everything was said.
type exitCode int

// Error implements error.
func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything the streamer needs, and say how to mend it; exit code 1 for warnings, 2 for errors",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := settings.Parse[config.Config]("streamer doctor")
			if err != nil {
				return err
			}
			conn, err := openClickHouse(cfg.ClickHouse)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			probe, err := newProbe(cmd.Context(), cfg, conn)
			if err != nil {
				return err
			}
			defer probe.Postgres.Close()
			findings := doctor.Examine(cmd.Context(), doctor.Patient{Probe: probe, PostgresURL: cfg.Postgres.URL, ClickHouse: cfg.ClickHouse})
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
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON, for scripts")
	return cmd
}
