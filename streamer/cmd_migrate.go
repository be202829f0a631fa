package main

import (
	"context"
	"fmt"
	"log/slog"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"diehard/migrations"
	"diehard/shared/settings"
	"diehard/streamer/config"
	"diehard/streamer/replication"
)

func migrateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "migrate", Short: "Create and update the tables of both databases, and the slot"}
	cmd.AddCommand(&cobra.Command{
		Use:   "up",
		Short: "Run the migrations that are missing; safe to run again, and by several at once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := settings.Parse[config.Config]("streamer migrate")
			if err != nil {
				return err
			}
			log := newLogger(cfg)
			if err := migrations.Up(cmd.Context(), cfg.Postgres.URL, cfg.ClickHouse, log); err != nil {
				return err
			}
			if err := prepareSlot(cmd.Context(), cfg, log); err != nil {
				log.Warn("the replication slot could not be prepared; the streamer will do it, or say what is wrong", "error", err)
			}
			return nil
		},
	}, &cobra.Command{
		Use:   "status",
		Short: "List the migrations of both databases",
		Args:  cobra.NoArgs,
		RunE:  migrateStatus,
	})
	return cmd
}

// prepareSlot makes the slot as soon as there is a table: what is committed
// before the slot is not delivered by it, and the streamer may start later than the
// api. With shards it makes the slots of all of them, and before that their publications.
func prepareSlot(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	late := false
	r := cfg.Replication
	for _, r.Shard = range cfg.Replication.Shard.All() {
		slot, err := prepareShard(ctx, cfg.Postgres.URL, r.Origin())
		if err != nil {
			return err
		}
		late = late || slot.Late
	}
	switch {
	case late && cfg.Replication.Shard.Count > 0: // moving to shards, another streamer delivers those
		log.Info("the slots of all shards are made; events from before are for the streamer that ran until now, " +
			"and if there was none, `streamer replay --from-table` delivers them")
	case late:
		log.Warn("the outbox had events before the slot was made: once the streamer runs, `streamer replay --from-table` delivers them")
	}
	return nil
}

func prepareShard(ctx context.Context, url string, from replication.Origin) (replication.Slot, error) {
	c, err := replication.OpenControl(ctx, url, "diehard-streamer-command", from)
	if err != nil {
		return replication.Slot{}, err
	}
	defer c.Close(ctx)
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
	list, err := migrations.StatusPostgres(cmd.Context(), cfg.Postgres.URL)
	if err != nil {
		return err
	}
	clickhouse, err := migrations.StatusClickHouse(cmd.Context(), cfg.ClickHouse)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "DATABASE\tMIGRATION\tAPPLIED")
	for _, m := range append(list, clickhouse...) {
		applied := "pending"
		if m.Applied() {
			applied = m.AppliedAt.Format("2006-01-02 15:04:05")
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", m.Database, m.Name, applied)
	}
	return w.Flush()
}
