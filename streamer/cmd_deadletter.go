package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"diehard/shared/clickhouse"
	"diehard/streamer/config"
	"diehard/streamer/deadletter"
	"diehard/streamer/sink"
)

func deadLetterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deadletter",
		Short: "List the events that could not be written, retry them, or drop them",
	}
	cmd.AddCommand(deadLetterList(), deadLetterRetry(), deadLetterDrop())
	return cmd
}

// recordFlags choose dead letters by their events.
type recordFlags struct {
	ids, types []string
	all        bool
}

func (f *recordFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.ids, "id", nil, "only the event with this id; may be repeated")
	cmd.Flags().StringSliceVar(&f.types, "type", nil, "only events of this type; may be repeated")
}

// addChange is add for a command that changes records, which needs an explicit choice.
func (f *recordFlags) addChange(cmd *cobra.Command) {
	f.add(cmd)
	cmd.Flags().BoolVar(&f.all, "all", false, "every open dead letter")
}

func (f *recordFlags) filter() (deadletter.Filter, error) {
	ids, err := parseIDs("--id", f.ids)
	return deadletter.Filter{Types: f.types, IDs: ids}, err
}

func (f *recordFlags) some() bool { return len(f.ids)+len(f.types) > 0 }

func (f *recordFlags) change(what string) (deadletter.Filter, error) {
	filter, err := f.filter()
	if err == nil && f.all == f.some() {
		err = fmt.Errorf("say which events to %s: --id, --type or --all", what)
	}
	return filter, err
}

const fullReasons = "show ClickHouse's whole message, which may quote the event"

// reasonOf is what may be shown of a reason.
func reasonOf(reason string, code int32, full bool) string {
	if full {
		return reason
	}
	return sink.RedactedReason(reason, code)
}

func deadLetterList() *cobra.Command {
	var chosen recordFlags
	var retried, dropped, asJSON, full bool
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show the events that could not be written, the latest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := chosen.filter()
			if err != nil {
				return err
			}
			filter.Retried, filter.Dropped = retried, dropped
			return withClickHouse(cmd, func(ctx context.Context, cfg config.Config, conn clickhouse.Conn) error {
				records, err := deadletter.List(ctx, conn, cfg.ClickHouse.DeadLetterTable, filter, limit)
				if err != nil {
					return err
				}
				for i, d := range records {
					records[i].Reason = reasonOf(d.Reason, d.Code, full)
				}
				if asJSON {
					return printRecordsJSON(cmd.OutOrStdout(), records)
				}
				return printRecords(cmd.OutOrStdout(), records, limit, full)
			})
		},
	}
	chosen.add(cmd)
	cmd.Flags().BoolVar(&retried, "retried", false, "also those that were written since")
	cmd.Flags().BoolVar(&dropped, "dropped", false, "also those that were dropped")
	cmd.Flags().BoolVar(&full, "full", false, fullReasons)
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON, one object per line")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most this many")
	return cmd
}

const recordTime = "2006-01-02 15:04:05"

func printRecords(out io.Writer, records []deadletter.Record, limit int, full bool) error {
	if len(records) == 0 {
		_, err := fmt.Fprintln(out, "no dead letters")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "FAILED AT\tEVENT ID\tEVENT TYPE\tCOMMIT LSN\tSEQ\tSTATE\tREASON")
	for _, d := range records {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n",
			d.FailedAt.UTC().Format(recordTime), d.EventID, oneLine(d.EventType), d.LSN, d.Seq, stateOf(d), shown(d.Reason, full))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(records) == limit {
		_, err := fmt.Fprintf(out, "there may be more: --limit is %d\n", limit)
		return err
	}
	return nil
}

func stateOf(d deadletter.Record) string {
	switch {
	case !d.RetriedAt.IsZero():
		return "written " + d.RetriedAt.UTC().Format(recordTime)
	case !d.DroppedAt.IsZero():
		return "dropped " + d.DroppedAt.UTC().Format(recordTime)
	default:
		return "open"
	}
}

// oneLine makes v fit for a terminal: ClickHouse quotes the values it refuses,
// which may be long and contain anything. --full and --json show all of it.
func oneLine(v string) string {
	const most = 200
	text := printable(v)
	if clean := []rune(text); len(clean) > most {
		return string(clean[:most]) + "…"
	}
	return text
}

// shown is v for a terminal, cut unless all of it is wanted.
func shown(v string, full bool) string {
	if full {
		return printable(v)
	}
	return oneLine(v)
}

// printable is v as one line without control characters.
func printable(v string) string {
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, v)), " ")
}

// recordJSON is what scripts read.
type recordJSON struct {
	Source     string     `json:"source"`
	CommitLSN  string     `json:"commit_lsn"`
	CommitSeq  uint32     `json:"commit_seq"`
	CommitTime time.Time  `json:"commit_time"`
	EventID    uuid.UUID  `json:"event_id"`
	EventType  string     `json:"event_type"`
	Reason     string     `json:"reason"`
	ErrorCode  int32      `json:"error_code"`
	FailedAt   time.Time  `json:"failed_at"`
	RetriedAt  *time.Time `json:"retried_at"`
	DroppedAt  *time.Time `json:"dropped_at"`
}

func printRecordsJSON(out io.Writer, records []deadletter.Record) error {
	encoder := json.NewEncoder(out)
	for _, d := range records {
		row := recordJSON{
			Source: d.Source, CommitLSN: d.LSN.String(), CommitSeq: d.Seq, CommitTime: d.CommitTime,
			EventID: d.EventID, EventType: d.EventType, Reason: d.Reason, ErrorCode: d.Code, FailedAt: d.FailedAt,
		}
		if !d.RetriedAt.IsZero() {
			row.RetriedAt = &d.RetriedAt
		}
		if !d.DroppedAt.IsZero() {
			row.DroppedAt = &d.DroppedAt
		}
		if err := encoder.Encode(row); err != nil {
			return err
		}
	}
	return nil
}

func deadLetterRetry() *cobra.Command {
	var chosen recordFlags
	var dropped, full bool
	cmd := &cobra.Command{
		Use:   "retry",
		Short: "Write dead letters to event_log, at their own position and exactly once; the streamer may run",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := chosen.change("retry")
			if err != nil {
				return err
			}
			filter.Dropped = dropped
			return withClickHouse(cmd, func(ctx context.Context, cfg config.Config, _ clickhouse.Conn) error {
				return retryRecords(ctx, cmd.OutOrStdout(), cfg, filter, full)
			})
		},
	}
	chosen.addChange(cmd)
	cmd.Flags().BoolVar(&dropped, "dropped", false, "also those that were dropped")
	cmd.Flags().BoolVar(&full, "full", false, fullReasons)
	return cmd
}

// errNoMatch means that the chosen events are no dead letters.
var errNoMatch = errors.New("no dead letter matches; `streamer deadletter list --retried --dropped` shows all")

// retryRecords fails when a chosen event is not in event_log at the end.
func retryRecords(ctx context.Context, out io.Writer, cfg config.Config, filter deadletter.Filter, full bool) error {
	one, err := openReader(cfg.ClickHouse) // so that one replica answers what belongs together
	if err != nil {
		return err
	}
	defer func() { _ = one.Close() }()
	retrier, err := deadletter.NewRetrier(ctx, cfg.Postgres.Address(), one, cfg.Tables())
	if err != nil {
		return err
	}
	defer retrier.Close()
	count := make(map[deadletter.Result]int)
	err = retrier.Retry(ctx, filter, func(o deadletter.Outcome) {
		count[o.Result]++
		if o.Cause != "" {
			_, _ = fmt.Fprintf(out, "%s %s at %s/%d: %s: %s\n", o.EventID, oneLine(o.EventType), o.LSN, o.Seq, o.Result,
				shown(reasonOf(o.Cause, o.CauseCode, full), full))
		}
	})
	_, _ = fmt.Fprintf(out, "%d written, %d already written, %d refused, %d too early\n",
		count[deadletter.Written], count[deadletter.AlreadyWritten], count[deadletter.Refused], count[deadletter.TooEarly])
	left := count[deadletter.Refused] + count[deadletter.TooEarly]
	switch {
	case err != nil:
		return err
	case left > 0:
		return fmt.Errorf("%d events are still dead letters", left)
	case len(count) == 0 && len(filter.IDs)+len(filter.Types) > 0:
		return errNoMatch
	}
	return nil
}

func deadLetterDrop() *cobra.Command {
	var chosen recordFlags
	cmd := &cobra.Command{
		Use:   "drop",
		Short: "Drop dead letters that can never be written",
		Long: "Dropped events stay in the dead-letter table, marked as dropped, but are not open any more: alerts and `retry`\n" +
			"ignore them, and `replay` and `verify` do not take them for missing. `list --dropped` shows them, and\n" +
			"`retry --dropped` retries them.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := chosen.change("drop")
			if err != nil {
				return err
			}
			return withClickHouse(cmd, func(ctx context.Context, cfg config.Config, conn clickhouse.Conn) error {
				n, err := deadletter.Drop(ctx, cfg.Postgres.Address(), conn, cfg.Tables(), filter)
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%d dropped\n", n)
				if err == nil && n == 0 && chosen.some() {
					return errNoMatch
				}
				return err
			})
		},
	}
	chosen.addChange(cmd)
	return cmd
}
