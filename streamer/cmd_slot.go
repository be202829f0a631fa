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
	cmd.AddCommand(
		slotVerb("create", "Create the slot at the present end of the WAL; earlier events need `replay --from-table`",
			(*replication.Control).ReplaceSlot, "slot %s starts at %s\n"),
		dropSlotCommand(),
		slotVerb("accept", "Go on with a slot that may not have sent every event: `replay --from-table` then delivers those, and the slot keeps what it still has to send",
			(*replication.Control).AcceptSlot, "slot %s goes on behind %s; run `streamer replay --from-table`, retention waits for it\n"),
		slotVerb("finish", "Confirm the end of the WAL once everything is delivered and the streamer is stopped, as pg_upgrade requires",
			(*replication.Control).FinishSlot, "slot %s has delivered everything and stands at %s; stop the server before anything is published\n"),
	)
	return cmd
}

// slotVerb does something to the slot. result is printed with its name and position.
func slotVerb(use, short string, do func(*replication.Control, context.Context) (replication.Slot, error), result string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withControl(cmd.Context(), func(ctx context.Context, c *replication.Control, slot string) error {
				c.Waits = func(what string) { cmd.PrintErrln("waiting for", what) }
				s, err := do(c, ctx)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), result, slot, s.ConfirmedFlush)
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
	return do(ctx, c, from.SlotName())
}
