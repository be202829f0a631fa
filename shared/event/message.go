package event

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/jackc/pgx/v5"
)

// MessagePrefix marks the logical decoding messages that are events.
//
// Their content is a JSON object, a line feed, and the context, byte for byte:
//
//	{"v":1,"id":"…","event_type":"order_paid","event_date_time":"2026-11-24T12:00:00.123456Z"}
//	{"order": 42}
//
// The object is the row without its context, under the names of the columns. v is
// the version of this form. environment ("") and metadata_version (1) may be left
// out, and so may trace_context. The time is RFC 3339. The encoding is UTF-8.
const MessagePrefix = "diehard.event"

// MessageVersion is the version of the form that [PublishMessages] writes.
const MessageVersion = 1

const (
	// The function refuses while no streamer reads messages: they would be lost.
	emit = `SELECT public.publish_messages($1::text[])`
	// As for rows, every driver can send text.
	emitText = `SELECT public.publish_messages($1::text::text[])`
)

// PublishMessages writes events into the WAL alone, as transactional logical
// decoding messages: no table, no partitions, no vacuum, and nothing to retain.
// They are delivered like those of [Publish], in the order in which both were
// published, if and only if the transaction commits.
//
// The streamer must run with REPLICATION_MESSAGES=true; PostgreSQL refuses the
// call while it never has. What is in the WAL only cannot be queried, and is
// replayed from a bookmark or not at all.
//
// If one event is invalid nothing is sent. Errors are as those of [Publish].
func PublishMessages(ctx context.Context, db DB, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	messages, err := frame(events)
	if err != nil {
		return wrap(err)
	}
	if _, ok := db.(sqlDB); !ok {
		_, err = db.Exec(ctx, emit, messages)
		return wrap(err)
	}
	var list strings.Builder
	for _, m := range messages {
		appendElement(&list, m)
	}
	_, err = db.Exec(ctx, emitText, closeArray(&list))
	return wrap(err)
}

// QueueMessages is to [PublishMessages] what [Queue] is to [Publish].
func QueueMessages(batch *pgx.Batch, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	messages, err := frame(events)
	if err != nil {
		return wrap(err)
	}
	queue(batch, emit, []any{messages})
	return nil
}

// header is the first line of a message.
type header struct {
	Version         int    `json:"v"`
	ID              string `json:"id"`
	Type            string `json:"event_type"`
	DateTime        string `json:"event_date_time"`
	Environment     string `json:"environment,omitempty"`
	MetadataVersion int64  `json:"metadata_version,omitempty"` // 1 is left out
	TraceContext    string `json:"trace_context,omitempty"`
}

const microseconds = "2006-01-02T15:04:05.000000Z"

// frame returns the contents of messages.
func frame(events []Event) ([]string, error) {
	ready, err := prepare(events)
	if err != nil {
		return nil, err
	}
	messages := make([]string, len(ready))
	for i, e := range ready {
		h := header{
			Version: MessageVersion, ID: e.ID.String(), Type: e.Type, DateTime: e.DateTime.UTC().Format(microseconds),
			Environment: e.Environment, MetadataVersion: e.MetadataVersion, TraceContext: e.TraceContext,
		}
		if h.MetadataVersion == defaultMetadataVersion {
			h.MetadataVersion = 0
		}
		line, err := json.Marshal(h)
		if err != nil {
			return nil, err
		}
		messages[i] = string(line) + "\n" + string(e.Context)
	}
	return messages, nil
}
