package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"diehard/shared/settings"
	"diehard/streamer/config"
	"diehard/streamer/replication"
)

func slotCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "slot", Short: "Create, drop, accept or finish the replication slot"}
	cmd.AddCommand(&cobra.Command{
		Use:   "create",
		Short: "Create the slot at the present end of the WAL; earlier events need `replay --from-table`",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withControl(cmd.Context(), func(ctx context.Context, c *replication.Control, slot string) error {
				s, err := c.ReplaceSlot(ctx)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "slot %s starts at %s\n", slot, s.ConfirmedFlush)
				return err
			})
		},
	}, dropSlotCommand(), acceptSlotCommand(), finishSlotCommand())
	return cmd
}

func finishSlotCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "finish",
		Short: "Confirm the end of the WAL, when everything is delivered and the streamer is stopped, as pg_upgrade wants it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withControl(cmd.Context(), func(ctx context.Context, c *replication.Control, slot string) error {
				s, err := c.FinishSlot(ctx)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "slot %s has delivered everything and stands at %s; stop the server before anything is published\n", slot, s.ConfirmedFlush)
				return err
			})
		},
	}
}

func acceptSlotCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "accept",
		Short: "Go on with a slot that may not have sent every event, which `replay --from-table` then finds; it keeps what waits in the slot",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withControl(cmd.Context(), func(ctx context.Context, c *replication.Control, slot string) error {
				s, err := c.AcceptSlot(ctx)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "slot %s goes on behind %s; run `streamer replay --from-table`, retention waits for it\n", slot, s.ConfirmedFlush)
				return err
			})
		},
	}
}

func dropSlotCommand() *cobra.Command {
	var forget bool
	cmd := &cobra.Command{
		Use:   "drop",
		Short: "Drop the slot, letting PostgreSQL remove the WAL it holds; the streamer must be stopped",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withControl(cmd.Context(), func(ctx context.Context, c *replication.Control, slot string) error {
				done := "dropped"
				if err := c.DropSlot(ctx); errors.Is(err, replication.ErrNoSlot) {
					done = "did not exist"
				} else if err != nil {
					return err
				}
				if forget {
					if err := c.DeleteRecord(ctx); err != nil {
						return err
					}
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "slot %s %s\n", slot, done)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&forget, "forget", false,
		"the slot will not come back: retention no longer waits for it and drops old partitions, delivered to it or not")
	return cmd
}

func withControl(ctx context.Context, do func(ctx context.Context, c *replication.Control, slot string) error) error {
	cfg, err := settings.Parse[config.Config]("streamer slot")
	if err != nil {
		return err
	}
	from := cfg.Origin()
	c, err := replication.OpenControl(ctx, cfg.Postgres.Address(), "diehard-streamer-command", from)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	return do(ctx, c, from.Slot)
}
