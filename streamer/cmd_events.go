package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"diehard/shared/clickhouse"
	"diehard/streamer/config"
	"diehard/streamer/events"
)

// eventFlags choose events.
type eventFlags struct {
	since, until timeFlag
	types, ids   []string
	where, trace string
	source       string
	around       string
	after        string
	limit        int
	asJSON       bool
	follow       bool
}

func eventsCommand() *cobra.Command {
	var f eventFlags
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show the events of event_log: the latest, those around one, or a source as a log that can be followed",
		Long: "Events prints the latest events, one per line, the newest last.\n\n" +
			"With --follow or --after it reads the events of one source by position, in commit order. A program that stores the\n" +
			"position of the last event it has handled, and starts again with --after that position, gets every event once.",
		Example: "  streamer events --since 1h --type 'order_*'\n  streamer events --around 01a208ec-6f26-7d1d-aaa1-df0ad3300db9\n" +
			"  streamer events --where \"JSONExtractInt(event_context, 'order') = 42\"\n  streamer events --follow --json --after 0/16B3748/3",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return showEvents(cmd, f) },
	}
	flags := cmd.Flags()
	flags.Var(&f.since, "since", "only events whose event_date_time is this time or later")
	flags.Var(&f.until, "until", "only events whose event_date_time is before this time")
	flags.StringSliceVar(&f.types, "type", nil, "only events of this type, where * stands for any text; may be repeated")
	flags.StringSliceVar(&f.ids, "id", nil, "only the event with this id; may be repeated")
	flags.StringVar(&f.trace, "trace", "", "only events of this trace: a W3C trace id, or a traceparent")
	flags.StringVar(&f.where, "where", "", "only events for which this SQL condition on the columns of event_log holds")
	flags.StringVar(&f.source, "source", "", "only events of this source; with --follow and --after by default the one of REPLICATION_SLOT")
	flags.StringVar(&f.around, "around", "", "the event with this id, its transaction, its trace, and what happened within five minutes")
	flags.IntVar(&f.limit, "limit", 100, "at most this many; 0 for no limit with --after")
	flags.BoolVar(&f.asJSON, "json", false, "as JSON, one object per line")
	flags.BoolVar(&f.follow, "follow", false, "wait for more events; without --after from the end of the log, and if it has no event yet, for the first one")
	flags.StringVar(&f.after, "after", "", "read the log from behind this position, LSN/SEQ; 0/0/0 is its beginning")
	cmd.MarkFlagsMutuallyExclusive("around", "follow")
	cmd.MarkFlagsMutuallyExclusive("around", "after")
	return cmd
}

// filter is f without what chooses a command.
func (f *eventFlags) filter() (events.Filter, error) {
	filter := events.Filter{Since: f.since.Time, Until: f.until.Time, Types: f.types, Where: f.where, Source: f.source}
	var err error
	if filter.Trace, err = parseTrace(f.trace); err != nil {
		return filter, err
	}
	filter.IDs, err = parseIDs("--id", f.ids)
	return filter, err
}

var traceForm = regexp.MustCompile(`^(?:[0-9a-f]{2}-)?([0-9a-f]{32})(?:-[0-9a-f]{16}-[0-9a-f]{2})?$`)

// parseTrace takes what programs log: the id alone, or the header that it came with.
func parseTrace(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	found := traceForm.FindStringSubmatch(strings.ToLower(text))
	if found == nil {
		return "", fmt.Errorf("--trace %q is neither a trace id of 32 hexadecimal digits nor a traceparent", text)
	}
	return found[1], nil
}

func parseIDs(flag string, texts []string) ([]uuid.UUID, error) {
	var ids []uuid.UUID
	for _, text := range texts {
		id, err := uuid.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s %q is not a UUID", flag, text)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func showEvents(cmd *cobra.Command, f eventFlags) error {
	filter, err := f.filter()
	if err != nil {
		return err
	}
	if f.limit < 0 || f.limit == 0 && f.after == "" && !f.follow {
		return errors.New("--limit must be 1 or more")
	}
	return withClickHouse(cmd, func(ctx context.Context, cfg config.Config, conn clickhouse.Conn) error {
		table, err := events.Open(ctx, conn, cfg.ClickHouse.EventLogTable)
		if err != nil {
			return err
		}
		write := eventWriter(cmd.OutOrStdout(), f.asJSON)
		var list []events.Event
		switch {
		case f.follow || f.after != "":
			return readLog(cmd, cfg, table, f, filter, write)
		case f.around != "":
			ids, err := parseIDs("--around", []string{f.around})
			if err != nil {
				return err
			}
			if list, err = table.Around(ctx, ids[0], filter, f.limit); err != nil {
				return err
			}
		default:
			if list, err = table.Latest(ctx, filter, f.limit); err != nil {
				return err
			}
		}
		return write(list)
	})
}

// eventJSON is what scripts read.
type eventJSON struct {
	Position        string          `json:"position"` // for --after
	EventID         uuid.UUID       `json:"event_id"`
	EventType       string          `json:"event_type"`
	EventDateTime   time.Time       `json:"event_date_time"`
	Environment     string          `json:"environment"`
	EventContext    json.RawMessage `json:"event_context"`
	MetadataVersion uint64          `json:"metadata_version"`
	TraceID         string          `json:"trace_id"`
	PublishedBy     string          `json:"published_by"`
	Source          string          `json:"source"`
	CommitTime      time.Time       `json:"commit_time"`
	IngestedAt      time.Time       `json:"ingested_at"`
}

// eventWriter returns what writes events, each as one line, in one write.
func eventWriter(out io.Writer, asJSON bool) func([]events.Event) error {
	return func(list []events.Event) error {
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		for _, e := range list {
			if !asJSON {
				_, _ = fmt.Fprintf(&b, "%s  %s  %s  %s  %s\n", e.DateTime.UTC().Format("2006-01-02 15:04:05.000000"), e.ID,
					oneLine(e.Type), oneLine(e.PublishedBy), printable(e.Context))
				continue
			}
			row := eventJSON{
				Position: events.FormatPosition(e.Position), EventID: e.ID, EventType: e.Type, EventDateTime: e.DateTime, Environment: e.Environment,
				EventContext: json.RawMessage(e.Context), MetadataVersion: e.MetadataVersion, TraceID: e.TraceID, PublishedBy: e.PublishedBy,
				Source: e.Source, CommitTime: e.CommitTime, IngestedAt: e.IngestedAt,
			}
			if !json.Valid(row.EventContext) {
				text, err := json.Marshal(e.Context)
				if err != nil {
					return fmt.Errorf("event %s: %w", e.ID, err)
				}
				row.EventContext = text
			}
			if err := encoder.Encode(row); err != nil {
				return fmt.Errorf("event %s: %w", e.ID, err)
			}
		}
		_, err := out.Write(b.Bytes())
		return err
	}
}
