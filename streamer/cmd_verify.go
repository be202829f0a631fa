package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"diehard/streamer/replay"
)

func verifyCommand() *cobra.Command {
	var chosen rangeFlags
	var limit int
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare every committed event with event_log: missing, extra, different; exit code 1 if any; the streamer may run",
		Long: "Verify compares id, type, time, environment, context and version of every event.\n\n" +
			"With --from-bookmark or --from-lsn it reads the WAL that a bookmark keeps. Otherwise it reads the outbox\n" +
			"itself, by default all of it: then the streamer must be running.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			chosen.table = chosen.bookmark == "" && chosen.from.LSN == 0
			if chosen.table && chosen.to.LSN != 0 {
				return errors.New("--to-lsn needs a beginning: --from-lsn or --from-bookmark")
			}
			var v replay.Verdict
			err := withReplay(cmd, "verifying", chosen.table, func(ctx context.Context, c replay.Config) (err error) {
				if chosen.table {
					v, err = replay.VerifyTable(ctx, c, chosen.span(), limit)
				} else {
					v, err = replay.VerifyWAL(ctx, c, chosen.wal(), limit)
				}
				return err
			})
			if err != nil {
				return err
			}
			return closeVerify(cmd.OutOrStdout(), v)
		},
	}
	chosen.add(cmd)
	cmd.Flags().IntVar(&limit, "limit", 20, "print at most this many differences")
	for _, begin := range []string{"from-bookmark", "from-lsn"} {
		cmd.MarkFlagsMutuallyExclusive(begin, "since")
		cmd.MarkFlagsMutuallyExclusive(begin, "until")
	}
	return cmd
}

// closeVerify writes the verdict; exit code 1 means that something is wrong.
func closeVerify(out io.Writer, v replay.Verdict) error {
	where := "the outbox"
	if v.To != 0 {
		where = fmt.Sprintf("%s to %s", v.From, v.To)
	}
	if v.Read == 0 && !v.Wrong() {
		_, err := fmt.Fprintf(out, "nothing to compare: no events in %s\n", where)
		return err
	}
	_, _ = fmt.Fprintf(out, "%d events in %s: %d equal, %d dead letters, %d missing, %d extra, %d different\n",
		v.Read, where, v.Equal, v.DeadLetters, v.Missing, v.Extra, v.Different)
	if v.Messages {
		_, _ = fmt.Fprintln(out, "events that were published as messages are not in the outbox, and cannot be distinguished from extra ones: "+
			"`streamer verify --from-bookmark` compares them all")
	}
	if !v.Wrong() {
		return nil
	}
	if err := printDifferences(out, v.First); err != nil {
		return err
	}
	if all := v.Missing + v.Extra + v.Different; all > int64(len(v.First)) {
		_, _ = fmt.Fprintf(out, "and %d more: see --limit\n", all-int64(len(v.First)))
	}
	if v.Missing > 0 {
		_, _ = fmt.Fprintln(out, "`streamer replay --from-table`, or `--from-bookmark`, fills what is missing")
	}
	return exitCode(1)
}

func printDifferences(out io.Writer, list []replay.Difference) error {
	if len(list) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "WHAT\tEVENT ID\tCOMMIT LSN\tSEQ\tDETAIL")
	for _, d := range list {
		lsn, seq := "-", "-" // a row of the outbox has no position
		if d.LSN != 0 {
			lsn, seq = d.LSN.String(), fmt.Sprint(d.Seq)
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Kind, d.ID, lsn, seq, d.What)
	}
	return w.Flush()
}
