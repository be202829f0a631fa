// Package event is the outbox: it turns what happened into rows that the
// streamer delivers to ClickHouse, exactly once, if and only if the caller's
// transaction commits.
//
// A typed event is any Go value that marshals to JSON:
//
//	type OrderPaid struct {
//		Order int `json:"order"`
//	}
//
//	paid, err := event.New(OrderPaid{Order: 42}, event.WithEnvironment("Production"))
//	...
//	err = event.Publish(ctx, tx, paid) // tx is yours to commit
//
// [Publish] takes a pgx transaction, a pool or a connection, and by way of [SQL]
// those of database/sql. Thousands of events are one statement. [Queue] adds the
// insert to a pgx.Batch, so that a use case and its event need one round trip.
// [PublishMessages] does without a table: the event is in the WAL alone.
package event

import (
	"crypto/md5" //nolint:gosec // see KeyByte
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/google/uuid"
)

// Table is the outbox, without its schema.
const Table = "outbox"

// Limits, in bytes. The outbox has the same.
const (
	MaxContextBytes     = 1 << 20
	MaxTypeBytes        = 255
	MaxEnvironmentBytes = 255
	MaxKeyBytes         = 255 // of an idempotency key
	MaxPublishedByBytes = 255
)

// defaultMetadataVersion is the first layout of a context.
const defaultMetadataVersion = 1

// Event is one row of the outbox.
type Event struct {
	ID              uuid.UUID       // unique; zero: made when published
	Type            string          // what kind, e.g. user_created
	DateTime        time.Time       // when it happened, stored in microseconds; zero: when published
	Environment     string          // where, e.g. Production; may be empty
	Context         json.RawMessage // what happened: JSON, delivered byte for byte
	MetadataVersion int64           // version of the context's layout; zero counts as 1
	TraceContext    string          // W3C traceparent of the cause; may be empty
	// Key is what the event is about, e.g. an order: events with the same key keep their
	// order if several streamers share the work (STREAMER_SHARD), others need not. It is not
	// stored: it decides the last byte of the ID that is made. An ID that is given decides itself.
	Key string
	// IdempotencyKey makes publishing again do nothing: for a day the event is stored once
	// for each key of the same login. The transaction that has just used the key is waited
	// for. Using it for another type or context is an error. Empty is none.
	IdempotencyKey string
}

// Typed is implemented by payloads that name their event type themselves.
type Typed interface{ EventType() string }

// Option changes what [New] fills in.
type Option func(*Event)

// WithType sets the event type; the default is the payload's own.
func WithType(name string) Option { return func(e *Event) { e.Type = name } }

// WithID sets the id; the default is a new UUID, version 7.
func WithID(id uuid.UUID) Option { return func(e *Event) { e.ID = id } }

// WithTime sets when the event happened; the default is now.
func WithTime(t time.Time) Option { return func(e *Event) { e.DateTime = t } }

// WithEnvironment sets where the event happened; the default is empty. The
// variable ENVIRONMENT is the api's: a producer names its own.
func WithEnvironment(name string) Option { return func(e *Event) { e.Environment = name } }

// WithMetadataVersion sets the version of the context's layout; the default is 1.
func WithMetadataVersion(version int64) Option {
	return func(e *Event) { e.MetadataVersion = version }
}

// WithTraceContext ties the event to the trace that caused it, by a W3C
// traceparent. The default is none.
func WithTraceContext(traceparent string) Option {
	return func(e *Event) { e.TraceContext = traceparent }
}

// WithKey sets what the event is about; see Event.Key. The default is nothing.
func WithKey(key string) Option { return func(e *Event) { e.Key = key } }

// WithIdempotencyKey sets the key under which the event is stored once; see
// Event.IdempotencyKey. The default is none.
func WithIdempotencyKey(key string) Option { return func(e *Event) { e.IdempotencyKey = key } }

// New makes an event of payload, which becomes the context: a json.RawMessage
// as it is, anything else by json.Marshal. The type is what payload says as
// [Typed], or the snake_case name of its Go type: UserCreated is user_created.
//
// Errors wrap [ErrInvalid].
func New(payload any, options ...Option) (Event, error) {
	context, err := marshal(payload)
	if err != nil {
		return Event{}, fmt.Errorf("%w: event_context: %w", ErrInvalid, err)
	}
	e := Event{Type: typeOf(payload), Context: context, MetadataVersion: defaultMetadataVersion}
	for _, option := range options {
		option(&e)
	}
	e, err = e.completed()
	if err != nil {
		return Event{}, err
	}
	return e, e.Validate()
}

func marshal(payload any) (json.RawMessage, error) {
	switch p := payload.(type) {
	case nil:
		return nil, errors.New("payload is nil")
	case json.RawMessage:
		return p, nil
	default:
		return json.Marshal(p)
	}
}

// typeOf returns the event type that payload has by itself, or "".
func typeOf(payload any) string {
	switch p := payload.(type) {
	case Typed:
		return p.EventType()
	case json.RawMessage:
		return ""
	default:
		return nameOf(reflect.TypeOf(p))
	}
}

// completed returns e with its zero fields filled.
func (e Event) completed() (Event, error) {
	if e.ID == uuid.Nil {
		id, err := uuid.NewV7()
		if err != nil {
			return e, fmt.Errorf("make an event id: %w", err)
		}
		if e.Key != "" {
			id[len(id)-1] = KeyByte(e.Key)
		}
		e.ID = id
	}
	if e.DateTime.IsZero() {
		e.DateTime = time.Now()
	}
	e.DateTime = e.DateTime.Truncate(time.Microsecond) // a driver that sends text would have PostgreSQL round it
	if e.MetadataVersion == 0 {
		e.MetadataVersion = defaultMetadataVersion
	}
	return e, nil
}

// KeyByte returns the last byte of the id of an event with a key: the row filters of
// shards look at it. event_id_for in SQL does the same.
func KeyByte(key string) byte {
	sum := md5.Sum([]byte(key)) //nolint:gosec // spreads keys, keeps no secrets; PostgreSQL has it, too
	return sum[len(sum)-1]
}
