package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/event"
	"diehard/shared/postgres"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
	"diehard/streamer/config"
	"diehard/streamer/replication"
)

// postgresConfig is the part of the settings that PostgreSQL's migrations need.
type postgresConfig struct {
	Postgres    postgres.Config
	Replication config.Replication
	Log         telemetry.LogConfig
}

func migrateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "migrate", Short: "Create and update the tables of both databases, and the slot"}
	cmd.AddCommand(migrateUpCommand(), migrateSQLCommand(), &cobra.Command{
		Use:   "status",
		Short: "List the migrations of both databases",
		Args:  cobra.NoArgs,
		RunE:  migrateStatus,
	})
	return cmd
}

func migrateUpCommand() *cobra.Command {
	onlyPostgres := false
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the pending migrations; safe to repeat, and in several processes at once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if onlyPostgres {
				return migratePostgres(cmd.Context())
			}
			cfg, err := settings.Parse[config.Config]("streamer migrate")
			if err != nil {
				return err
			}
			log := newLogger(cfg)
			set := migrations.Outbox(cfg.Postgres.Schema, cfg.Replication.Publication)
			if err := migrations.Up(cmd.Context(), cfg.Postgres, set, cfg.ClickHouse, log); err != nil {
				return err
			}
			closeMessages(cmd.Context(), set, cfg.Postgres, cfg.Replication, log)
			if err := prepareSlot(cmd.Context(), cfg, log); err != nil {
				log.Warn("cannot prepare the replication slot; the streamer tries again when it starts", "error", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&onlyPostgres, "postgres", false,
		"PostgreSQL alone, and no slot: for the database of an application's tests; no setting of ClickHouse is needed")
	return cmd
}

func migratePostgres(ctx context.Context) error {
	cfg, err := settings.Parse[postgresConfig]("streamer migrate")
	if err != nil {
		return err
	}
	log := telemetry.NewLogger(cfg.Log, os.Stderr, slog.String("program", "streamer"))
	set := migrations.Outbox(cfg.Postgres.Schema, cfg.Replication.Publication)
	if err := set.Up(ctx, cfg.Postgres, log); err != nil {
		return err
	}
	closeMessages(ctx, set, cfg.Postgres, cfg.Replication, log)
	return nil
}

// closeMessages lets producers alone write messages, if there are to be any: by default
// every login can. That takes a superuser.
func closeMessages(ctx context.Context, set migrations.Set, db postgres.Config, r config.Replication, log *slog.Logger) {
	if !r.Messages {
		return
	}
	if err := set.CloseMessages(ctx, db); err != nil {
		if open, ok := errors.AsType[*migrations.OpenMessagesError](err); ok {
			log.Error("every login may write messages, which become events: run the fix as a superuser", "fix", open.Fix)
			return
		}
		log.Warn("cannot check who may write messages", "error", err)
	}
}

func migrateSQLCommand() *cobra.Command {
	all, cloud := false, false
	cmd := &cobra.Command{
		Use:   "sql",
		Short: "Print the pending migrations of PostgreSQL as an SQL script, for psql and other tools; `migrate up` then has nothing to do there",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cloud {
				names, err := settings.Parse[clickhouse.Config]("streamer migrate")
				if err != nil {
					return err
				}
				return migrations.CloudScript(cmd.OutOrStdout(), names)
			}
			if all {
				// DATABASE_URL is required of Postgres, and not needed here.
				names, err := settings.Parse[scriptConfig]("streamer migrate")
				if err != nil {
					return err
				}
				return migrations.Outbox(names.Schema, names.Publication).WriteAll(cmd.OutOrStdout())
			}
			cfg, err := settings.Parse[postgresConfig]("streamer migrate")
			if err != nil {
				return err
			}
			return migrations.Outbox(cfg.Postgres.Schema, cfg.Replication.Publication).WritePending(cmd.Context(), cfg.Postgres, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&cloud, "clickhouse", false, "tables and grants of ClickHouse instead, for a ClickHouse Cloud service; without a connection to a database")
	cmd.Flags().BoolVar(&all, "all", false, "every migration, for an empty database; without a connection to PostgreSQL")
	return cmd
}

// scriptConfig names what a script creates.
type scriptConfig struct {
	Schema      event.Schema `env:"OUTBOX_SCHEMA" envDefault:"public" doc:"Schema of the outbox"`
	Publication string       `env:"REPLICATION_PUBLICATION" envDefault:"outbox_pub" doc:"publication of the outbox"`
}

// prepareSlot makes the slot as soon as there is a table: what is committed
// before the slot is not delivered by it, and the streamer may start later than the
// api. With shards it makes the slots of all of them, and before that their publications.
func prepareSlot(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	late := false
	each := cfg
	for _, each.Replication.Shard = range cfg.Replication.Shard.All() {
		slot, err := prepareShard(ctx, cfg.Postgres.Address(), each.Origin(), log)
		if err != nil {
			return err
		}
		late = late || slot.MissedEvents
	}
	switch {
	case late && cfg.Replication.Shard.Count > 0: // moving to shards, another streamer delivers those
		log.Info("the slots of all shards are created; the streamer that ran until now delivers the events before them; " +
			"if there was none, run `streamer replay --from-table`")
	case late:
		log.Warn("the outbox had events before the slot was created: start the streamer, then run `streamer replay --from-table` to deliver them")
	}
	return nil
}

func prepareShard(ctx context.Context, url string, from replication.Origin, log *slog.Logger) (replication.Slot, error) {
	c, err := replication.OpenControl(ctx, url, "diehard-streamer-command", from)
	if err != nil {
		return replication.Slot{}, err
	}
	defer c.Close(ctx)
	c.Waits = func(what string) { log.Info("waiting", "for", what) }
	if err := c.CreatePublications(ctx); err != nil {
		return replication.Slot{}, err
	}
	return c.EnsureSlot(ctx)
}

func migrateStatus(cmd *cobra.Command, _ []string) error {
	cfg, err := settings.Parse[config.Config]("streamer migrate")
	if err != nil {
		return err
	}
	list, err := migrations.Outbox(cfg.Postgres.Schema, cfg.Replication.Publication).Status(cmd.Context(), cfg.Postgres)
	if err != nil {
		return err
	}
	clickhouse, err := migrations.StatusClickHouse(cmd.Context(), cfg.ClickHouse)
	if err != nil {
		return err
	}
	return migrations.WriteStatus(cmd.OutOrStdout(), append(list, clickhouse...))
}
