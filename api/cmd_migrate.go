package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"diehard/migrations"
	"diehard/shared/postgres"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
)

// migrateConfig is the part of the settings that migrations need.
type migrateConfig struct {
	Postgres postgres.Config
	Log      telemetry.LogConfig
}

func migrateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "migrate", Short: "Create and update the api's own tables; those of the outbox come from streamer migrate"}
	all := false
	script := &cobra.Command{
		Use:   "sql",
		Short: "Print the pending migrations as an SQL script",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all {
				return migrations.API("").WriteAll(cmd.OutOrStdout())
			}
			return withMigrations(func(cfg migrateConfig, set migrations.Set) error {
				return set.WritePending(cmd.Context(), cfg.Postgres, cmd.OutOrStdout())
			})
		},
	}
	script.Flags().BoolVar(&all, "all", false, "every migration, for an empty database; without a connection to PostgreSQL")
	cmd.AddCommand(script, &cobra.Command{
		Use:   "up",
		Short: "Run the pending migrations; safe to repeat, and in several processes at once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withMigrations(func(cfg migrateConfig, set migrations.Set) error {
				return set.Up(cmd.Context(), cfg.Postgres, telemetry.NewLogger(cfg.Log, os.Stderr, slog.String("program", "api")))
			})
		},
	}, &cobra.Command{
		Use:   "status",
		Short: "List the migrations",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withMigrations(func(cfg migrateConfig, set migrations.Set) error {
				list, err := set.Status(cmd.Context(), cfg.Postgres)
				if err != nil {
					return err
				}
				return migrations.WriteStatus(cmd.OutOrStdout(), list)
			})
		},
	})
	return cmd
}

func withMigrations(do func(cfg migrateConfig, set migrations.Set) error) error {
	cfg, err := settings.Parse[migrateConfig]("api migrate")
	if err != nil {
		return usageError{err}
	}
	return postgres.Redact(do(cfg, migrations.API("")))
}
