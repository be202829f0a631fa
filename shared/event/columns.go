package event

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// How events are written was chosen with BenchmarkPublish: events a second of one
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
	target = `INSERT INTO public.outbox
		(id, event_type, event_date_time, environment, event_context, metadata_version, trace_context) `

	insertOne = target + `VALUES ($1, $2, $3, $4, $5, $6, NULLIF($7::text, ''))`

	insertMany = target + `SELECT id, type, at, environment, context, version, NULLIF(trace, '')
		FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::text[], $5::json[], $6::bigint[], $7::text[])
			AS event (id, type, at, environment, context, version, trace)`

	// Every driver can send text, and every type can be cast from it, arrays included.
	insertManyText = target + `SELECT id, type, at, environment, context, version, NULLIF(trace, '')
		FROM unnest($1::text::uuid[], $2::text::text[], $3::text::timestamptz[], $4::text::text[], $5::text::json[],
			$6::text::bigint[], $7::text::text[]) AS event (id, type, at, environment, context, version, trace)`
)

// prepare returns the events completed, or why one of them cannot be published.
func prepare(events []Event) ([]Event, error) {
	ready := make([]Event, len(events))
	for i, e := range events {
		e, err := e.completed()
		if err == nil {
			err = e.Validate()
		}
		if err != nil && len(events) > 1 {
			err = fmt.Errorf("event %d of %d: %w", i+1, len(events), err)
		}
		if err != nil {
			return nil, err
		}
		ready[i] = e
	}
	return ready, nil
}

// insert returns the statement for pgx, which sends binary.
func insert(events []Event) (string, []any) {
	if len(events) == 1 {
		e := events[0]
		return insertOne, []any{
			pgtype.UUID{Bytes: e.ID, Valid: true}, e.Type, e.DateTime, e.Environment, []byte(e.Context), e.MetadataVersion, e.TraceContext,
		}
	}
	n := len(events)
	var (
		ids          = make([]pgtype.UUID, n)
		types        = make([]string, n)
		times        = make([]time.Time, n)
		environments = make([]string, n)
		contexts     = make([][]byte, n)
		versions     = make([]int64, n)
		traces       = make([]string, n)
	)
	for i, e := range events {
		ids[i] = pgtype.UUID{Bytes: e.ID, Valid: true}
		types[i], times[i], environments[i] = e.Type, e.DateTime, e.Environment
		contexts[i], versions[i], traces[i] = e.Context, e.MetadataVersion, e.TraceContext
	}
	return insertMany, []any{ids, types, times, environments, contexts, versions, traces}
}

// insertText returns the statement for any driver: each column is a text[] literal.
func insertText(events []Event) (string, []any) {
	column := func(value func(e *Event) string) string {
		var b strings.Builder
		for i := range events {
			appendElement(&b, value(&events[i]))
		}
		return closeArray(&b)
	}
	return insertManyText, []any{
		column(func(e *Event) string { return e.ID.String() }),
		column(func(e *Event) string { return e.Type }),
		column(func(e *Event) string { return e.DateTime.UTC().Format(time.RFC3339Nano) }),
		column(func(e *Event) string { return e.Environment }),
		column(func(e *Event) string { return string(e.Context) }),
		column(func(e *Event) string { return strconv.FormatInt(e.MetadataVersion, 10) }),
		column(func(e *Event) string { return e.TraceContext }),
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

var columnNames = []string{"id", "event_type", "event_date_time", "environment", "event_context", "metadata_version", "trace_context"}

func copyAll(ctx context.Context, db copier, events []Event) error {
	_, err := db.CopyFrom(ctx, pgx.Identifier{"public", Table}, columnNames, pgx.CopyFromSlice(len(events), func(i int) ([]any, error) {
		e := &events[i]
		return []any{
			pgtype.UUID{Bytes: e.ID, Valid: true},
			e.Type, e.DateTime, e.Environment, []byte(e.Context), e.MetadataVersion,
			pgtype.Text{String: e.TraceContext, Valid: e.TraceContext != ""},
		}, nil
	}))
	return err
}
