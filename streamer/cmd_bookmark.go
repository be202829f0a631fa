package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"diehard/shared/settings"
	"diehard/streamer/config"
	"diehard/streamer/replay"
)

func bookmarkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bookmark",
		Short: "Manage positions in the WAL to replay from",
		Long: "A bookmark is a copy of the streamer's slot that is never active. PostgreSQL keeps all WAL since then,\n" +
			"so move it forward now and then, or drop it. It is lost when max_slot_wal_keep_size is reached and does not\n" +
			"follow a failover to a standby.",
	}
	cmd.AddCommand(bookmarkAdd(), bookmarkList(), bookmarkMove(), bookmarkDrop())
	return cmd
}

func bookmarkAdd() *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME",
		Short: "Keep what the streamer has not confirmed yet, and all that follows, for replay",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withBookmarks(cmd.Context(), func(ctx context.Context, b *replay.Bookmarks) error {
				m, err := b.Add(ctx, args[0])
				if err != nil {
					return err
				}
				return describeBookmark(cmd.OutOrStdout(), m)
			})
		},
	}
}

func describeBookmark(out io.Writer, m replay.Bookmark) error {
	_, err := fmt.Fprintf(out, "bookmark %s: replay is possible from %s on; it keeps %s of WAL on the server, which grows until it is moved or dropped\n",
		m.Name, m.Slot.ConfirmedFlush, humanize.IBytes(uint64(m.Slot.RetainedBytes))) //nolint:gosec // never negative
	return err
}

func bookmarkList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the bookmarks and the WAL that each keeps on the server",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withBookmarks(cmd.Context(), func(ctx context.Context, b *replay.Bookmarks) error {
				list, err := b.List(ctx)
				if err != nil {
					return err
				}
				return printBookmarks(cmd.OutOrStdout(), list)
			})
		},
	}
}

func printBookmarks(out io.Writer, list []replay.Bookmark) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no bookmarks: `streamer bookmark add NAME` adds one, from which later events can be replayed")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tREPLAY FROM\tKEEPS WAL\tADDED OR MOVED\tSTATE")
	for _, m := range list {
		since := "-"
		if at := m.Slot.InactiveSince; at != nil {
			since = at.UTC().Format(time.DateTime)
		}
		state := m.Slot.WALStatus
		if m.Slot.InvalidationReason != "" {
			state = "lost: " + m.Slot.InvalidationReason
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.Name, m.Slot.ConfirmedFlush, humanize.IBytes(uint64(m.Slot.RetainedBytes)), since, state) //nolint:gosec // never negative
	}
	return w.Flush()
}

func bookmarkMove() *cobra.Command {
	var to lsnFlag
	cmd := &cobra.Command{
		Use:   "move NAME",
		Short: "Move a bookmark forward, letting PostgreSQL remove the WAL before it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withBookmarks(cmd.Context(), func(ctx context.Context, b *replay.Bookmarks) error {
				m, err := b.Move(ctx, args[0], to.LSN)
				if err != nil {
					return err
				}
				return describeBookmark(cmd.OutOrStdout(), m)
			})
		},
	}
	cmd.Flags().Var(&to, "to", "the new position; by default what the streamer has confirmed")
	return cmd
}

func bookmarkDrop() *cobra.Command {
	return &cobra.Command{
		Use:   "drop NAME",
		Short: "Remove a bookmark and let PostgreSQL remove its WAL",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withBookmarks(cmd.Context(), func(ctx context.Context, b *replay.Bookmarks) error {
				if err := b.Drop(ctx, args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "bookmark %s dropped\n", args[0])
				return err
			})
		},
	}
}

func withBookmarks(ctx context.Context, do func(ctx context.Context, b *replay.Bookmarks) error) error {
	cfg, err := settings.Parse[config.Config]("streamer bookmark")
	if err != nil {
		return err
	}
	b, err := replay.OpenBookmarks(ctx, cfg.Postgres.Address(), cfg.Origin().SlotName())
	if err != nil {
		return err
	}
	defer b.Close()
	return do(ctx, b)
}
