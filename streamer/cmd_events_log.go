package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"diehard/streamer/config"
	"diehard/streamer/decode"
	"diehard/streamer/events"
)

// errLimit ends a log that was read up to --limit.
var errLimit = errors.New("limit")

// readLog prints the events of one source by position.
func readLog(cmd *cobra.Command, cfg config.Config, table *events.Table, f eventFlags, filter events.Filter, write func([]events.Event) error) error {
	ctx, log := cmd.Context(), newLogger(cfg)
	var after decode.Position
	var err error
	if filter.Source, after, err = startOfLog(ctx, cfg, table, f, log); err != nil || ctx.Err() != nil {
		return err
	}
	reader := table.Log(filter, after)
	if f.follow {
		if !cmd.Flags().Changed("limit") {
			f.limit = 0
		}
		err = reader.Follow(ctx, upTo(f.limit, write), retrying(log))
	} else {
		err = readToEnd(ctx, reader, upTo(f.limit, write))
	}
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// retrying says that ClickHouse is asked again.
func retrying(log *slog.Logger) func(error) {
	return func(err error) { log.Warn("ClickHouse is unavailable, retrying", slog.Any("error", err)) }
}

// startOfLog returns the source of the log, and the position behind which reading begins.
func startOfLog(ctx context.Context, cfg config.Config, table *events.Table, f eventFlags, log *slog.Logger) (source string, after decode.Position, err error) {
	if f.after != "" {
		if after, err = events.ParsePosition(f.after); err != nil {
			return "", after, err
		}
	}
	source, waited := f.source, false
	if source == "" {
		if source, waited, err = sourceOfLog(ctx, cfg, table, f.follow, log); err != nil || ctx.Err() != nil {
			return "", after, err
		}
	}
	if f.after == "" && !waited {
		after, err = table.End(ctx, source)
	}
	return source, after, err
}

// upTo returns write that fails with errLimit after limit events; 0 is no limit.
func upTo(limit int, write func([]events.Event) error) func([]events.Event) error {
	if limit == 0 {
		return write
	}
	return func(list []events.Event) error {
		list = list[:min(limit, len(list))]
		limit -= len(list)
		if err := write(list); err != nil || limit > 0 {
			return err
		}
		return errLimit
	}
}

func readToEnd(ctx context.Context, reader *events.Log, do func([]events.Event) error) error {
	for {
		list, err := reader.Next(ctx)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := do(list); err != nil {
			return err
		}
	}
}

// sourceOfLog is the source of our slot. If event_log has none yet, and wait is true, it
// waits for the first event, and reports that it has.
func sourceOfLog(ctx context.Context, cfg config.Config, table *events.Table, wait bool, log *slog.Logger) (source string, waited bool, err error) {
	slot := cfg.Origin().SlotName()
	sources, err := table.Sources(ctx, "/"+slot)
	if waited = wait && err == nil && len(sources) == 0; waited {
		log.Info("event_log has no events of the slot yet, waiting for the first one", slog.String("slot", slot))
		sources, err = table.AwaitSources(ctx, "/"+slot, retrying(log))
	}
	switch {
	case err != nil || ctx.Err() != nil:
		return "", waited, err
	case len(sources) == 0:
		return "", waited, fmt.Errorf("event_log has no events of slot %s yet: choose another with --source", slot)
	case len(sources) > 1:
		return "", waited, fmt.Errorf("event_log has events of several servers with slot %s: choose one with --source: %q", slot, sources)
	}
	return sources[0], waited, nil
}
