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
)

func deadLetterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deadletter",
		Short: "List the events that could not be stored, and try them again",
	}
	cmd.AddCommand(deadLetterList(), deadLetterRetry())
	return cmd
}

// letterFlags choose letters by what their events are.
type letterFlags struct{ ids, types []string }

func (f *letterFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.ids, "id", nil, "only the event with this id; may be repeated")
	cmd.Flags().StringSliceVar(&f.types, "type", nil, "only events of this type; may be repeated")
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

func deadLetterList() *cobra.Command {
	var chosen letterFlags
	var retried, asJSON bool
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
			filter.Retried = retried
			return withClickHouse(cmd.Context(), func(ctx context.Context, cfg config.Config, conn driver.Conn) error {
				letters, err := deadletter.List(ctx, conn, cfg.ClickHouse.DeadLetterTable, filter, limit)
				if err != nil {
					return err
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
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "FAILED AT\tEVENT ID\tEVENT TYPE\tCOMMIT LSN\tSEQ\tRETRIED AT\tREASON")
	for _, l := range letters {
		retried := "-"
		if !l.RetriedAt.IsZero() {
			retried = l.RetriedAt.UTC().Format(letterTime)
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n",
			l.FailedAt.UTC().Format(letterTime), l.EventID, oneLine(l.EventType), l.LSN, l.Seq, retried, oneLine(l.Reason))
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
		if err := encoder.Encode(row); err != nil {
			return err
		}
	}
	return nil
}

func deadLetterRetry() *cobra.Command {
	var chosen letterFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "retry",
		Short: "Store events that were set aside, at their own place and exactly once; the streamer may run",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := chosen.filter()
			if err != nil {
				return err
			}
			if all == (len(filter.IDs)+len(filter.Types) > 0) {
				return errors.New("say which events to try again: --id, --type or --all")
			}
			return withClickHouse(cmd.Context(), func(ctx context.Context, cfg config.Config, conn driver.Conn) error {
				return retryLetters(ctx, cmd.OutOrStdout(), cfg, conn, filter)
			})
		},
	}
	chosen.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "every event that was set aside")
	return cmd
}

// retryLetters fails when a chosen event is not in event_log at the end.
func retryLetters(ctx context.Context, out io.Writer, cfg config.Config, conn driver.Conn, filter deadletter.Filter) error {
	tables := cfg.Tables()
	retrier, err := deadletter.NewRetrier(ctx, cfg.Postgres.URL, conn, tables)
	if err != nil {
		return err
	}
	defer retrier.Close()
	count := make(map[deadletter.Result]int)
	err = retrier.Retry(ctx, filter, func(o deadletter.Outcome) {
		count[o.Result]++
		if o.Cause != "" {
			_, _ = fmt.Fprintf(out, "%s %s at %s/%d: %s: %s\n", o.EventID, oneLine(o.EventType), o.LSN, o.Seq, o.Result, oneLine(o.Cause))
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
		return errors.New("no event that is set aside matches; `streamer deadletter list --retried` shows all")
	}
	return nil
}
