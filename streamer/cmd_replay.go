package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"diehard/shared/clickhouse"
	"diehard/streamer/config"
	"diehard/streamer/replay"
)

// rangeFlags choose a part of the WAL or of the outbox.
type rangeFlags struct {
	bookmark     string
	from, to     lsnFlag
	table        bool
	since, until timeFlag
}

func (f *rangeFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.bookmark, "from-bookmark", "", "begin at this bookmark")
	flags.Var(&f.from, "from-lsn", "begin at this position, from the last bookmark at or before it")
	flags.Var(&f.to, "to-lsn", "end at this position; what the streamer has confirmed if not given")
	flags.Var(&f.since, "since", "of the outbox, only what was created at this time or later")
	flags.Var(&f.until, "until", "of the outbox, only what was created before this time")
	cmd.MarkFlagsMutuallyExclusive("to-lsn", "since")
	cmd.MarkFlagsMutuallyExclusive("to-lsn", "until")
}

func (f *rangeFlags) wal() replay.Range {
	return replay.Range{Bookmark: f.bookmark, From: f.from.LSN, To: f.to.LSN}
}

func (f *rangeFlags) span() replay.Span {
	return replay.Span{Since: f.since.Time, Until: f.until.Time}
}

func replayCommand() *cobra.Command {
	var chosen rangeFlags
	var mode replay.Mode
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Fill what is missing in event_log, from the WAL or the outbox, or reprocess into another table; the streamer may run",
		Long: "Replay reads events a second time while the streamer runs. Rows of event_log are left alone, so that\n" +
			"events stay there exactly once; a replay may be interrupted and repeated at any time.\n\n" +
			"--from-bookmark and --from-lsn read the WAL that a bookmark keeps. --from-table reads the outbox itself,\n" +
			"for what is older than every bookmark, or after a slot was dropped or lost: the streamer must be running.",
		Example: "  streamer replay --from-lsn 0/16B3748 --dry-run\n  streamer replay --from-table --since 48h\n" +
			"  streamer replay --from-bookmark noon --into event_log_2",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runReplay(cmd, &chosen, mode)
		},
	}
	chosen.add(cmd)
	cmd.Flags().BoolVar(&chosen.table, "from-table", false, "read the outbox itself instead of the WAL")
	cmd.Flags().BoolVar(&mode.DryRun, "dry-run", false, "only count what is missing")
	cmd.Flags().StringVar(&mode.Into, "into", "", "reprocess into this table, created by CREATE TABLE … AS event_log")
	cmd.MarkFlagsOneRequired("from-bookmark", "from-lsn", "from-table")
	cmd.MarkFlagsMutuallyExclusive("from-table", "from-bookmark")
	cmd.MarkFlagsMutuallyExclusive("from-table", "from-lsn")
	cmd.MarkFlagsMutuallyExclusive("from-table", "to-lsn")
	return cmd
}

func runReplay(cmd *cobra.Command, chosen *rangeFlags, mode replay.Mode) error {
	if !chosen.table && (!chosen.since.IsZero() || !chosen.until.IsZero()) {
		return errors.New("--since and --until choose from the outbox: add --from-table")
	}
	var report replay.Report
	began := time.Now()
	err := withReplay(cmd, "replaying", chosen.table, func(ctx context.Context, c replay.Config) (err error) {
		if chosen.table {
			report, err = replay.FromTable(ctx, c, chosen.span(), mode)
		} else {
			report, err = replay.FromWAL(ctx, c, chosen.wal(), mode)
		}
		return err
	})
	report.Took = time.Since(began)
	return closeReplay(cmd.OutOrStdout(), report, mode, err)
}

// closeReplay writes the report of what was done, also when err ended it.
func closeReplay(out io.Writer, r replay.Report, mode replay.Mode, err error) error {
	if errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	if err != nil && r.Read == 0 {
		return err
	}
	where := "the outbox"
	if r.To != 0 {
		where = fmt.Sprintf("%s to %s", r.From, r.To)
	}
	into := mode.Into
	if into == "" {
		into = "the event log"
	}
	_, _ = fmt.Fprintf(out, "%d events read from %s in %s\n%d were in %s already\n", r.Read, where, r.Took.Round(time.Millisecond), r.Present, into)
	if r.DeadLetters > 0 {
		_, _ = fmt.Fprintf(out, "%d are dead letters (`streamer deadletter list --dropped`)\n", r.DeadLetters)
	}
	if r.Messages {
		_, _ = fmt.Fprintln(out, "events that were published as messages are not in the outbox: `streamer replay --from-bookmark` fills those")
	}
	switch {
	case mode.DryRun:
		_, _ = fmt.Fprintf(out, "%d are missing and would be filled\n", r.Missing)
	default:
		_, _ = fmt.Fprintf(out, "%d were missing, %d of them are filled now\n", r.Missing, r.Filled)
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w; run it again to go on, what was written is recognized", err)
	case r.Refused > 0:
		return fmt.Errorf("%d events were refused by ClickHouse; the log above says why", r.Refused)
	}
	return nil
}

var errInterrupted = errors.New("interrupted")

// withReplay calls do with what the environment says, and shows its progress.
func withReplay(cmd *cobra.Command, what string, table bool, do func(ctx context.Context, c replay.Config) error) error {
	unit := humanize.IBytes
	if table {
		unit = eventCount
	}
	return withClickHouse(cmd, func(ctx context.Context, cfg config.Config, conn clickhouse.Conn) error {
		p, log := cfg.Pipeline(), newLogger(cfg)
		reader, err := openReader(cfg.ClickHouse)
		if err != nil {
			return err
		}
		defer func() { _ = reader.Close() }()
		boundMemory(p.Limits)
		bar := newProgress(what, unit, cmd.ErrOrStderr(), log)
		defer bar.end()
		return do(ctx, replay.Config{
			PostgresURL: p.PostgresURL, Origin: p.Origin, ClickHouse: conn, Reader: reader,
			Tables: p.Tables, Limits: p.Limits, InsertTimeout: p.InsertTimeout, Log: log, Progress: bar.report,
		})
	})
}
