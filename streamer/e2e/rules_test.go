package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

// fields are those of an event, by the names of the outbox's columns. Context and type are
// text; nil is NULL, or left out.
type fields map[string]any

// casts are the types of the columns and of the functions' arguments.
var casts = map[string]string{
	"event_type": "text", "event_context": "text::json", "event_date_time": "timestamptz", "environment": "text",
	"metadata_version": "bigint", "trace_context": "text", "id": "text::uuid", "idempotency_key": "text",
}

// list returns the names, their values as parameters with casts, and the arguments.
func (f fields) list() (names, parameters []string, arguments []any) {
	for name, value := range f {
		arguments = append(arguments, value)
		names = append(names, name)
		parameters = append(parameters, fmt.Sprintf("$%d::%s", len(arguments), casts[name]))
	}
	return names, parameters, arguments
}

// object is the event as JSON. id is the name of its id.
func (f fields) object(id string) string {
	var parts []string
	for name, value := range f {
		content, _ := json.Marshal(value) //nolint:errchkjson // text, numbers and times
		switch {
		case value == nil:
			continue
		case name == "event_context":
			content = []byte(value.(string))
		case name == "id":
			name = id
		}
		parts = append(parts, fmt.Sprintf("%q: %s", name, content))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// event is the event in Go.
func (f fields) event() event.Event {
	text := func(name string) string { value, _ := f[name].(string); return value }
	e := event.Event{
		Type: text("event_type"), Context: json.RawMessage(text("event_context")), Environment: text("environment"),
		TraceContext: text("trace_context"), IdempotencyKey: text("idempotency_key"),
	}
	e.DateTime, _ = f["event_date_time"].(time.Time)
	e.MetadataVersion, _ = f["metadata_version"].(int64)
	return e
}

// waysOfFields publish an event, with every field that each of them has.
func waysOfFields(env *testenv.Env, db *sql.DB, api string) map[string]func(context.Context, fields) error {
	insert := func(relation string) func(context.Context, fields) error {
		return func(ctx context.Context, f fields) error {
			names, parameters, arguments := f.list()
			_, err := env.Pool.Exec(ctx, "INSERT INTO "+relation+" ("+strings.Join(names, ", ")+") VALUES ("+strings.Join(parameters, ", ")+")", arguments...)
			return err
		}
	}
	call := func(function, json string) func(context.Context, fields) error {
		return func(ctx context.Context, f fields) error {
			names, parameters, arguments := f.list()
			for i, name := range names {
				if name == "event_context" {
					parameters[i] = fmt.Sprintf("$%d::%s", i+1, json)
				}
				if name == "id" {
					name = "event_id"
				}
				parameters[i] = name + " => " + parameters[i]
			}
			_, err := env.Pool.Exec(ctx, "SELECT "+function+"("+strings.Join(parameters, ", ")+")", arguments...)
			return err
		}
	}
	post := func(kind, before, after string) func(context.Context, fields) error {
		return func(ctx context.Context, f fields) error {
			return postEvent(ctx, api, kind, before+f.object("id")+after)
		}
	}
	return map[string]func(context.Context, fields) error{
		"`INSERT`": insert("outbox"),
		"view":     insert("diehard_events"),
		"`COPY`": func(ctx context.Context, f fields) error {
			names, _, values := f.list()
			_, err := env.Pool.CopyFrom(ctx, pgx.Identifier{event.Table}, names, pgx.CopyFromRows([][]any{values}))
			return err
		},
		"`publish_event`, text":  call("publish_event", "text"),
		"`publish_event`, json":  call("publish_event", "text::json"),
		"`publish_event`, jsonb": call("publish_event", "text::jsonb"),
		"`publish_events`": func(ctx context.Context, f fields) error {
			_, err := env.Pool.Exec(ctx, "SELECT publish_events($1)", "["+f.object("event_id")+"]")
			return err
		},
		"message":            call("publish_event_message", "text"),
		"Go":                 func(ctx context.Context, f fields) error { return event.Publish(ctx, env.Pool, f.event()) },
		"Go, messages":       func(ctx context.Context, f fields) error { return event.PublishMessages(ctx, env.Pool, f.event()) },
		"Go, `database/sql`": func(ctx context.Context, f fields) error { return event.Publish(ctx, event.SQL(db), f.event()) },
		"`POST /events`":     post("application/json", "[", "]"),
		"NDJSON":             post("application/x-ndjson", "", "\n"),
	}
}

// rules are one event each that breaks a rule of diehard_problem, and the sentence that SQL
// and Go have for it; the api where it has another. Ways that cannot say such a value
// are left out: not.
var rules = []struct {
	field     string
	value     any
	says, api string
	not       string // the beginnings of the ways' names
}{
	{"event_type", nil, "event_type is missing", "event_type is required", "Go"},
	{"event_type", "", "event_type must have 1 to 255 bytes", "event_type is required", ""},
	{"event_type", strings.Repeat("x", 256), "event_type must have 1 to 255 bytes", "event_type must have at most 255 bytes", ""},
	{"event_type", "a\nb", "event_type must not have control characters, or spaces at its ends", "event_type must not contain control characters", ""},
	{"event_type", "a\u0085", "event_type must not have control characters, or spaces at its ends", "event_type must not contain control characters", ""},
	{"event_type", " ", "event_type must not have control characters, or spaces at its ends", "event_type must not have spaces at its ends", ""},
	{"event_context", nil, "event_context is missing", "event_context is required", ""},
	{"event_context", named["1 MiB and a byte"], "event_context must have at most 1048576 bytes", "", ""},
	{"event_context", `"{\"a\": 1}"`, "event_context is JSON encoded twice, a string instead of an object or array", "event_context is JSON encoded twice: a string", ""},
	{"environment", strings.Repeat("x", 256), "environment must have at most 255 bytes", "", ""},
	{"environment", "a\tb", "environment must not have control characters", "environment must not contain control characters", ""},
	{"metadata_version", int64(-1), "metadata_version must be 1 or more", "metadata_version must be a whole number, 1 or more", ""},
	{"event_date_time", time.Date(1899, 12, 31, 0, 0, 0, 0, time.UTC), "event_date_time must be between the years 1900 and 2299", "", ""},
	{"event_date_time", time.Date(2300, 1, 2, 0, 0, 0, 0, time.UTC), "event_date_time must be between the years 1900 and 2299", "", ""},
	{"id", "00000000-0000-0000-0000-000000000000", "event_id must not be the nil UUID", "id must be a UUID", "Go"},
	{"trace_context", "garbage", "trace_context must be a W3C traceparent of version 00", "trace_context is not a field of an event", ""},
	{"idempotency_key", strings.Repeat("x", 256), "idempotency_key must have 1 to 255 bytes", "idempotency_key is not a field", "`INSERT` view `COPY`"},
	{"idempotency_key", "a\u009fb", "idempotency_key must not have control characters", "idempotency_key is not a field", "`INSERT` view `COPY`"},
}

// Every rule holds in every way, in the same sentence, and of what is refused nothing arrives.
func TestEveryRuleHoldsInEveryWay(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	var database string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT current_database()").Scan(&database))
	execute(t, env, `ALTER DATABASE "`+database+`" SET diehard.refuse_double_encoding = on`)
	env.Pool.Reset()
	start(t, env, withMessages)
	api := run(t, env, "api", "API_OPEN=true").address()
	db := stdlib.OpenDBFromPool(env.Pool)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	all := waysOfFields(env, db, api)
	for _, rule := range rules {
		for way, publish := range all {
			if cannotSay(way, rule.not) {
				continue
			}
			f := fields{"event_type": "t", "event_context": "{}"}
			f[rule.field] = rule.value
			err := publish(t.Context(), f)
			says := rule.says
			switch way {
			case "`POST /events`", "NDJSON":
				if rule.api != "" {
					says = rule.api
				}
				says = "events[0]." + says
			case "`publish_events`":
				says = "events[0]." + says
			default:
				says = "invalid event: " + says
			}
			assert.ErrorContains(t, err, says, "%s by %s", rule.says, way)
		}
	}
	// NULL in an optional field is its default.
	for way, publish := range all {
		require.NoError(t, publish(t.Context(), fields{"event_type": way, "event_context": "{}"}), way)
		f := fields{"event_type": way, "event_context": "{}", "environment": nil, "metadata_version": nil, "trace_context": nil}
		require.NoError(t, publish(t.Context(), f), way)
	}
	awaitRows(t, env, 2*len(all))
	assert.Equal(t, len(all), count(t, env, "uniqExact(event_type, environment, metadata_version)", ""))
	assert.Equal(t, 2*len(all), count(t, env, "countIf(metadata_version = 1)", ""))
}

// cannotSay reports whether the name of way begins with a word of list.
func cannotSay(way, list string) bool {
	for _, word := range strings.Fields(list) {
		if strings.HasPrefix(way, word) {
			return true
		}
	}
	return false
}
