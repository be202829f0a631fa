package event

import (
	"context"
	"fmt"

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
// the version of this form. environment (""), metadata_version (1), trace_context and
// published_by may be left out. The time is RFC 3339. The encoding is UTF-8. The function
// publish_event_message writes it.
const MessagePrefix = "diehard.event"

// PublishMessages writes events into the WAL alone, as transactional logical
// decoding messages: no table, no partitions, no vacuum, and nothing to retain.
// They are delivered like those of [Publish], in the order in which both were
// published, if and only if the transaction commits.
//
// The streamer must run with REPLICATION_MESSAGES=true; PostgreSQL refuses the
// call while it has not. What is in the WAL only cannot be queried, and is
// replayed from a bookmark or not at all.
//
// If one event is invalid nothing is sent. Errors are as those of [Publish].
func PublishMessages(ctx context.Context, db DB, events ...Event) error {
	return Outbox{}.PublishMessages(ctx, db, events...)
}

// PublishMessages is [PublishMessages] by way of o's functions. PublishedBy must be empty:
// a message always carries the login of the session.
func (o Outbox) PublishMessages(ctx context.Context, db DB, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	sql, arguments, err := o.message(formOf(db), events)
	if err != nil {
		return wrap(err)
	}
	_, err = db.Exec(ctx, sql, arguments...)
	return wrap(err)
}

// QueueMessages is to [PublishMessages] what [Queue] is to [Publish].
func QueueMessages(batch *pgx.Batch, events ...Event) error {
	return Outbox{}.QueueMessages(batch, events...)
}

// QueueMessages is [QueueMessages] by way of o's functions.
func (o Outbox) QueueMessages(batch *pgx.Batch, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	sql, arguments, err := o.message(forPGX, events)
	if err != nil {
		return wrap(err)
	}
	queue(batch, sql, arguments)
	return nil
}

func (o Outbox) message(f form, events []Event) (string, []any, error) {
	if o.PublishedBy != "" {
		return "", nil, fmt.Errorf("%w: a message cannot be published for another", ErrInvalid)
	}
	ready, err := prepare(events)
	if err != nil {
		return "", nil, err
	}
	sql, arguments := o.messages(f, ready)
	return sql, arguments, nil
}
