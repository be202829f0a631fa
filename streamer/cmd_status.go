package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"diehard/streamer/config"
	"diehard/streamer/ops"
)

// clearScreen moves to the top and clears, without a flicker.
const clearScreen = "\x1b[H\x1b[J"

func statusCommand() *cobra.Command {
	var watch, asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show slot, lag, throughput and errors; works with and without a running streamer",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := writeText
			if asJSON {
				show = writeJSON
			}
			return withProbe(cmd, func(ctx context.Context, cfg config.Config, probe *ops.Probe) error {
				return status(ctx, cfg, probe, cmd.OutOrStdout(), watch, show)
			})
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every second")
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON, for scripts")
	return cmd
}

var errNoAnswer = errors.New("neither the streamer nor a database answers")

// status shows the status once, or every second until ctx ends.
func status(ctx context.Context, cfg config.Config, probe *ops.Probe, out io.Writer, watch bool, show func(io.Writer, ops.Status) error) error {
	for {
		s := askStatus(ctx, cfg, probe)
		if watch && onTerminal(out) {
			if _, err := io.WriteString(out, clearScreen); err != nil {
				return err
			}
		}
		if err := show(out, s); err != nil {
			return err
		}
		switch {
		case !watch && !s.Postgres.Up && !s.ClickHouse.Up:
			return errNoAnswer
		case !watch:
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// askStatus prefers the running streamer's answer, if it is the one of our slot.
func askStatus(ctx context.Context, cfg config.Config, probe *ops.Probe) ops.Status {
	s, err := ops.AskStreamer(ctx, cfg.Addr)
	if err == nil && s.SlotName == probe.Origin.SlotName() && sameServer(ctx, probe, s.Postgres.Postgres) {
		return s
	}
	return probe.Status(ctx)
}

// sameServer reports whether a streamer's PostgreSQL is ours. Slots have the same
// name in every installation; of a server that does not answer in time it is
// taken to be.
func sameServer(ctx context.Context, probe *ops.Probe, theirs *ops.Postgres) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	ours, err := probe.AskPostgres(ctx)
	return err != nil || theirs == nil || ours.SystemID == theirs.SystemID
}

func onTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && isatty.IsTerminal(file.Fd())
}

func writeText(w io.Writer, s ops.Status) error { return s.WriteText(w) }

func writeJSON(w io.Writer, s ops.Status) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(s)
}
