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

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"diehard/shared/clickhouse"
	"diehard/shared/settings"
	"diehard/streamer/config"
	"diehard/streamer/deadletter"
	"diehard/streamer/sink"
)

func deadLetterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deadletter",
		Short: "List the events that could not be stored, try them again, or give them up",
	}
	cmd.AddCommand(deadLetterList(), deadLetterRetry(), deadLetterDrop())
	return cmd
}

// letterFlags choose letters by what their events are.
type letterFlags struct {
	ids, types []string
	all        bool
}

func (f *letterFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.ids, "id", nil, "only the event with this id; may be repeated")
	cmd.Flags().StringSliceVar(&f.types, "type", nil, "only events of this type; may be repeated")
}

// addChange is add for a command that changes letters: without a choice it shall not do so.
func (f *letterFlags) addChange(cmd *cobra.Command) {
	f.add(cmd)
	cmd.Flags().BoolVar(&f.all, "all", false, "every event that is set aside")
}

func (f *letterFlags) filter() (deadletter.Filter, error) {
	filter := deadletter.Filter{Types: f.types}
	for _, text := range f.ids {
		id, err := uuid.Parse(text)
		if err != nil {
			return filter, fmt.Errorf("--id %q is not a UUID", text)
		}
		filter.IDs = append(filter.IDs, id)
	}
	return filter, nil
}

func (f *letterFlags) some() bool { return len(f.ids)+len(f.types) > 0 }

func (f *letterFlags) change(what string) (deadletter.Filter, error) {
	filter, err := f.filter()
	if err == nil && f.all == f.some() {
		err = fmt.Errorf("say which events to %s: --id, --type or --all", what)
	}
	return filter, err
}

const fullReasons = "show all that ClickHouse said, which may quote the event"

// reasonOf is what may be shown of a reason.
func reasonOf(reason string, code int32, full bool) string {
	if full {
		return reason
	}
	return sink.Loggable(reason, code)
}

func deadLetterList() *cobra.Command {
	var chosen letterFlags
	var retried, dropped, asJSON, full bool
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show the events that could not be stored, the last first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := chosen.filter()
			if err != nil {
				return err
			}
			filter.Retried, filter.Dropped = retried, dropped
			return withClickHouse(cmd.Context(), func(ctx context.Context, cfg config.Config, conn driver.Conn) error {
				letters, err := deadletter.List(ctx, conn, cfg.ClickHouse.DeadLetterTable, filter, limit)
				if err != nil {
					return err
				}
				for i, l := range letters {
					letters[i].Reason = reasonOf(l.Reason, l.Code, full)
				}
				if asJSON {
					return printLettersJSON(cmd.OutOrStdout(), letters)
				}
				return printLetters(cmd.OutOrStdout(), letters, limit)
			})
		},
	}
	chosen.add(cmd)
	cmd.Flags().BoolVar(&retried, "retried", false, "also those that have been stored since")
	cmd.Flags().BoolVar(&dropped, "dropped", false, "also those that were dropped")
	cmd.Flags().BoolVar(&full, "full", false, fullReasons)
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON, one object a line")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many")
	return cmd
}

func withClickHouse(ctx context.Context, do func(ctx context.Context, cfg config.Config, conn driver.Conn) error) error {
	cfg, err := settings.Parse[config.Config]("streamer deadletter")
	if err != nil {
		return err
	}
	conn, err := clickhouse.Open(ctx, cfg.ClickHouse)
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(ctx, cfg, conn)
}

const letterTime = "2006-01-02 15:04:05"

func printLetters(out io.Writer, letters []deadletter.Letter, limit int) error {
	if len(letters) == 0 {
		_, err := fmt.Fprintln(out, "no such event is set aside")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "FAILED AT\tEVENT ID\tEVENT TYPE\tCOMMIT LSN\tSEQ\tSTATE\tREASON")
	for _, l := range letters {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n",
			l.FailedAt.UTC().Format(letterTime), l.EventID, oneLine(l.EventType), l.LSN, l.Seq, stateOf(l), oneLine(l.Reason))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(letters) == limit {
		_, err := fmt.Fprintf(out, "there may be more: --limit is %d\n", limit)
		return err
	}
	return nil
}

func stateOf(l deadletter.Letter) string {
	switch {
	case !l.RetriedAt.IsZero():
		return "stored " + l.RetriedAt.UTC().Format(letterTime)
	case !l.DroppedAt.IsZero():
		return "dropped " + l.DroppedAt.UTC().Format(letterTime)
	default:
		return "set aside"
	}
}

// oneLine makes v fit for a terminal: ClickHouse quotes the values it refuses,
// and they may be long and hold anything. --json shows all of it.
func oneLine(v string) string {
	const most = 200
	clean := []rune(strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, v)), " "))
	if len(clean) > most {
		return string(clean[:most]) + "…"
	}
	return string(clean)
}

// letterJSON is what scripts read.
type letterJSON struct {
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

func printLettersJSON(out io.Writer, letters []deadletter.Letter) error {
	encoder := json.NewEncoder(out)
	for _, l := range letters {
		row := letterJSON{
			Source: l.Source, CommitLSN: l.LSN.String(), CommitSeq: l.Seq, CommitTime: l.CommitTime,
			EventID: l.EventID, EventType: l.EventType, Reason: l.Reason, ErrorCode: l.Code, FailedAt: l.FailedAt,
		}
		if !l.RetriedAt.IsZero() {
			row.RetriedAt = &l.RetriedAt
		}
		if !l.DroppedAt.IsZero() {
			row.DroppedAt = &l.DroppedAt
		}
		if err := encoder.Encode(row); err != nil {
			return err
		}
	}
	return nil
}

func deadLetterRetry() *cobra.Command {
	var chosen letterFlags
	var dropped, full bool
	cmd := &cobra.Command{
		Use:   "retry",
		Short: "Store events that were set aside, at their own place and exactly once; the streamer may run",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := chosen.change("try again")
			if err != nil {
				return err
			}
			filter.Dropped = dropped
			return withClickHouse(cmd.Context(), func(ctx context.Context, cfg config.Config, conn driver.Conn) error {
				return retryLetters(ctx, cmd.OutOrStdout(), cfg, conn, filter, full)
			})
		},
	}
	chosen.addChange(cmd)
	cmd.Flags().BoolVar(&dropped, "dropped", false, "also those that were dropped")
	cmd.Flags().BoolVar(&full, "full", false, fullReasons)
	return cmd
}

// errNoLetter: what was asked for by name is not there to be changed.
var errNoLetter = errors.New("no event that is set aside matches; `streamer deadletter list --retried --dropped` shows all")

// retryLetters fails when a chosen event is not in event_log at the end.
func retryLetters(ctx context.Context, out io.Writer, cfg config.Config, conn driver.Conn, filter deadletter.Filter, full bool) error {
	retrier, err := deadletter.NewRetrier(ctx, cfg.Postgres.URL, conn, cfg.Tables())
	if err != nil {
		return err
	}
	defer retrier.Close()
	count := make(map[deadletter.Result]int)
	err = retrier.Retry(ctx, filter, func(o deadletter.Outcome) {
		count[o.Result]++
		if o.Cause != "" {
			_, _ = fmt.Fprintf(out, "%s %s at %s/%d: %s: %s\n", o.EventID, oneLine(o.EventType), o.LSN, o.Seq, o.Result,
				oneLine(reasonOf(o.Cause, o.CauseCode, full)))
		}
	})
	_, _ = fmt.Fprintf(out, "%d landed, %d were there already, %d refused, %d too early\n",
		count[deadletter.Landed], count[deadletter.WasThere], count[deadletter.Refused], count[deadletter.TooEarly])
	left := count[deadletter.Refused] + count[deadletter.TooEarly]
	switch {
	case err != nil:
		return err
	case left > 0:
		return fmt.Errorf("%d events are still set aside", left)
	case len(count) == 0 && len(filter.IDs)+len(filter.Types) > 0:
		return errNoLetter
	}
	return nil
}

func deadLetterDrop() *cobra.Command {
	var chosen letterFlags
	cmd := &cobra.Command{
		Use:   "drop",
		Short: "Give events up that were set aside and can never be stored",
		Long: "Drop gives events up. They stay in the dead-letter table, marked as dropped, but are not open any more: alerts\n" +
			"and `retry` pass over them, and `replay` and `verify` do not take them for missing. `list --dropped` shows them,\n" +
			"and `retry --dropped` takes them up again.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := chosen.change("drop")
			if err != nil {
				return err
			}
			return withClickHouse(cmd.Context(), func(ctx context.Context, cfg config.Config, conn driver.Conn) error {
				n, err := deadletter.Drop(ctx, cfg.Postgres.URL, conn, cfg.Tables(), filter)
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%d dropped\n", n)
				if err == nil && n == 0 && chosen.some() {
					return errNoLetter
				}
				return err
			})
		},
	}
	chosen.addChange(cmd)
	return cmd
}
