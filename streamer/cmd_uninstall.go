package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"diehard/migrations"
	"diehard/shared/settings"
	"diehard/streamer/config"
)

func uninstallCommand() *cobra.Command {
	yes := false
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Drop the slot, the publication and all that the migrations created in PostgreSQL; without --yes print the statements",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := settings.Parse[config.Config]("streamer uninstall")
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			set := migrations.Outbox(cfg.Postgres.Schema, cfg.Replication.Publication)
			if err := set.Uninstall(cmd.Context(), cfg.Postgres, yes, out); err != nil {
				return err
			}
			done := "-- done;"
			if !yes {
				done = "-- nothing was changed: run it with --yes. Events that are not delivered yet would be lost;"
			}
			_, err = fmt.Fprintf(out, "%s the roles diehard_producer, diehard_api and diehard_streamer stay, and in ClickHouse the tables %s.%s and %s.%s\n",
				done, cfg.ClickHouse.Database, cfg.ClickHouse.EventLogTable, cfg.ClickHouse.Database, cfg.ClickHouse.DeadLetterTable)
			return err
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "drop them; the streamer must be stopped")
	return cmd
}
