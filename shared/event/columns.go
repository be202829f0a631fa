package event

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// How events are written was chosen with BenchmarkPublish: events per second of one
// client, PostgreSQL 18 on the same two cores:
//
//	events      unnest      COPY     VALUES
//	     1      12,300     9,100     13,000
//	    10      60,400    60,000     65,000
//	   100     140,800   154,200    123,100
//	 1,000     181,000   248,900    131,300
//	10,000     189,100   396,200          -
//
// COPY needs one round trip more, which it wins back from about copyAt events on.
const copyAt = 1000

const (
	insertColumns = `id, event_type, event_date_time, environment, event_context, metadata_version, trace_context`
	target        = `INSERT INTO {outbox}.outbox (` + insertColumns + `) `
	// targetBy also stores who published, which is for members of diehard_api.
	targetBy = `INSERT INTO {outbox}.outbox (` + insertColumns + `, published_by) `

	one = `($1, $2, $3, $4, $5, $6, NULLIF($7::text, '')`
	// oneArgument is the arguments of a function, and has an idempotency key as well.
	oneArgument = `($2::text, $5::json, $4::text, $6::bigint, NULLIF($7::text, ''), $3::timestamptz, $1::uuid, NULL::text, NULLIF($8::text, ''))`

	many = `$1::uuid[], $2::text[], $3::timestamptz[], $4::text[], $5::json[], $6::bigint[], $7::text[], $8::text[]`
	// Every driver can send text, and every type can be cast from it, arrays included.
	manyText = `$1::text::uuid[], $2::text::text[], $3::text::timestamptz[], $4::text::text[], $5::text::json[],
		$6::text::bigint[], $7::text::text[], $8::text::text[]`

	asEvent  = `) AS event (id, type, at, environment, context, version, trace, key)`
	row      = `SELECT id, type, at, environment, context, version, NULLIF(trace, '')`
	argument = `type, context, environment, version, NULLIF(trace, ''), at, id, NULL::text, NULLIF(key, '')`
	// The functions take an idempotency key, which an insert cannot.
	byFunction  = `{outbox}.publish_event`
	intoTheWAL  = `{outbox}.publish_event_message`
	manyIntoWAL = `{outbox}.diehard_publish_messages`
	publishedBy = `, $9::text`
)

// prepare returns the events completed, or why one of them cannot be published, and which.
func prepare(events []Event) ([]Event, error) {
	ready := make([]Event, len(events))
	for i, e := range events {
		e, err := e.completed()
		if err != nil {
			return nil, err
		}
		if problem := e.problem(); problem != "" {
			if len(events) > 1 {
				problem = fmt.Sprintf("events[%d].%s", i, problem)
			}
			return nil, fmt.Errorf("%w: %s", ErrInvalid, problem)
		}
		ready[i] = e
	}
	return ready, nil
}

// form is how a driver takes the columns of many events.
type form struct {
	columns   string // as arrays, which unnest takes
	arguments func(events []Event) []any
}

var (
	// forPGX holds in every [pgx.QueryExecMode]: a []byte would be bytea where pgx does
	// not ask the server for types.
	forPGX = form{many, arrays}
	// forAny holds with any driver: each column is a text[] literal.
	forAny = form{manyText, literals}
)

// formOf returns the form for db.
func formOf(db DB) form {
	if _, ok := db.(sqlDB); ok {
		return forAny
	}
	return forPGX
}

// statement writes events, which are prepared.
func (o Outbox) statement(f form, events []Event) (string, []any) {
	rows := ` FROM unnest(` + f.columns + asEvent
	switch {
	case anyKey(events) && f.takesOne(events):
		return o.call(byFunction, &events[0])
	case anyKey(events):
		return o.Schema.SQL(`SELECT pg_catalog.count(` + byFunction + `(` + argument + `))` + rows), f.arguments(events)
	case o.PublishedBy != "":
		return o.Schema.SQL(targetBy + row + publishedBy + rows), append(f.arguments(events), o.PublishedBy)
	default:
		return o.Schema.SQL(target + row + rows), f.arguments(events)
	}
}

// messages writes events, which are prepared, into the WAL.
func (o Outbox) messages(f form, events []Event) (string, []any) {
	if f.takesOne(events) {
		return o.call(intoTheWAL, &events[0])
	}
	return o.Schema.SQL(`SELECT ` + manyIntoWAL + `(` + f.columns + `)`), f.arguments(events)
}

// takesOne reports whether events are one that f's driver can send without an array.
func (f form) takesOne(events []Event) bool { return f.columns == many && len(events) == 1 }

// call publishes an event by function.
func (o Outbox) call(function string, e *Event) (string, []any) {
	return o.Schema.SQL(`SELECT ` + function + oneArgument), append(values(e), e.IdempotencyKey)
}

// values are the parameters of one event for pgx.
func values(e *Event) []any {
	return []any{e.ID.String(), e.Type, e.DateTime, e.Environment, string(e.Context), e.MetadataVersion, e.TraceContext}
}

// single writes one event by pgx.
func (o Outbox) single(e *Event) (string, []any) {
	arguments := values(e)
	if o.PublishedBy != "" {
		return o.Schema.SQL(targetBy + `VALUES ` + one + `, $8::text)`), append(arguments, o.PublishedBy)
	}
	return o.Schema.SQL(target + `VALUES ` + one + `)`), arguments
}

func anyKey(events []Event) bool {
	return slices.ContainsFunc(events, func(e Event) bool { return e.IdempotencyKey != "" })
}

func arrays(events []Event) []any {
	n := len(events)
	var (
		ids          = make([]string, n)
		types        = make([]string, n)
		times        = make([]time.Time, n)
		environments = make([]string, n)
		contexts     = make([]string, n)
		versions     = make([]int64, n)
		traces       = make([]string, n)
		keys         = make([]string, n)
	)
	for i, e := range events {
		ids[i], types[i], times[i], environments[i] = e.ID.String(), e.Type, e.DateTime, e.Environment
		contexts[i], versions[i], traces[i], keys[i] = string(e.Context), e.MetadataVersion, e.TraceContext, e.IdempotencyKey
	}
	return []any{ids, types, times, environments, contexts, versions, traces, keys}
}

func literals(events []Event) []any {
	column := func(value func(e *Event) string) string {
		var b strings.Builder
		for i := range events {
			appendElement(&b, value(&events[i]))
		}
		return closeArray(&b)
	}
	return []any{
		column(func(e *Event) string { return e.ID.String() }),
		column(func(e *Event) string { return e.Type }),
		column(func(e *Event) string { return e.DateTime.UTC().Format(time.RFC3339Nano) }),
		column(func(e *Event) string { return e.Environment }),
		column(func(e *Event) string { return string(e.Context) }),
		column(func(e *Event) string { return strconv.FormatInt(e.MetadataVersion, 10) }),
		column(func(e *Event) string { return e.TraceContext }),
		column(func(e *Event) string { return e.IdempotencyKey }),
	}
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// appendElement adds a value to an array literal (PostgreSQL docs, "Array Input and Output Syntax").
func appendElement(b *strings.Builder, value string) {
	separator := byte(',')
	if b.Len() == 0 {
		separator = '{'
	}
	b.WriteByte(separator)
	b.WriteByte('"')
	_, _ = escaper.WriteString(b, value) // a Builder never fails
	b.WriteByte('"')
}

func closeArray(b *strings.Builder) string {
	b.WriteByte('}')
	return b.String()
}

// copier is what of pgx can COPY: a transaction, a connection, a pool.
type copier interface {
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error)
}

func (o Outbox) copy(ctx context.Context, db copier, events []Event) error {
	names := strings.Split(insertColumns, ", ")
	if o.PublishedBy != "" {
		names = append(names, "published_by")
	}
	_, err := db.CopyFrom(ctx, pgx.Identifier{o.Schema.Name(), Table}, names, pgx.CopyFromSlice(len(events), func(i int) ([]any, error) {
		e := &events[i]
		values := []any{
			pgtype.UUID{Bytes: e.ID, Valid: true},
			e.Type, e.DateTime, e.Environment, string(e.Context), e.MetadataVersion,
			pgtype.Text{String: e.TraceContext, Valid: e.TraceContext != ""},
		}
		if o.PublishedBy != "" {
			values = append(values, o.PublishedBy)
		}
		return values, nil
	}))
	return err
}
