package events

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"diehard/shared/event"
)

// maxDepth bounds the nesting of a context: PostgreSQL parses JSON recursively.
const maxDepth = 1000

// NewEvent holds the fields of an event to publish. The source has checked that
// the context is JSON.
type NewEvent struct {
	ID              uuid.UUID       // zero: made when stored
	Type            string          // 1 to 255 bytes
	DateTime        time.Time       // when it happened; zero: now
	Environment     *string         // at most 255 bytes; nil: that of the installation
	Context         json.RawMessage // JSON of at most 1 MiB, stored byte for byte
	MetadataVersion int64           // 1 or more; zero: 1
	Key             string          // what the event is about; see event.Event

	// Unreadable lists the fields that could not be parsed, the event itself with
	// an empty name. They are reported together with those that break a rule.
	Unreadable []FieldError
}

// FieldError says what is wrong with one field.
type FieldError struct {
	Field   string // as in JSON, with the event's index: events[3].event_type
	Message string
}

// InvalidError lists the fields that break a rule, [maxFieldErrors] at most.
type InvalidError struct{ Fields []FieldError }

// Error names the fields, never their values.
func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		parts[i] = f.Field + " " + f.Message
	}
	return "invalid events: " + strings.Join(parts, "; ")
}

// problems returns what is wrong with n, per field.
func (n *NewEvent) problems() []FieldError {
	broken := map[string]bool{}
	for _, b := range n.Unreadable {
		broken[b.Field] = true
	}
	if broken[""] {
		return n.Unreadable
	}
	found := n.Unreadable
	check := func(field, message string) {
		if message != "" && !broken[field] {
			found = append(found, FieldError{field, message})
		}
	}
	check("event_type", n.typeProblem())
	check("event_context", contextProblem(n.Context))
	if n.Environment != nil {
		check("environment", textProblem(*n.Environment, event.MaxEnvironmentBytes))
	}
	if !n.DateTime.IsZero() && !event.ValidTime(n.DateTime) {
		check("event_date_time", "must be between the years 1900 and 2299")
	}
	if n.MetadataVersion < 0 {
		check("metadata_version", "must be 1 or more")
	}
	return found
}

func (n *NewEvent) typeProblem() string {
	if n.Type == "" {
		return "is required"
	}
	if strings.Trim(n.Type, " ") != n.Type {
		return "must not have spaces at its ends"
	}
	return textProblem(n.Type, event.MaxTypeBytes)
}

func textProblem(text string, maxBytes int) string {
	switch {
	case len(text) > maxBytes:
		return fmt.Sprintf("must have at most %d bytes", maxBytes)
	case !utf8.ValidString(text):
		return "must be UTF-8"
	case strings.IndexFunc(text, unicode.IsControl) >= 0:
		return "must not contain control characters"
	default:
		return ""
	}
}

func contextProblem(context json.RawMessage) string {
	switch {
	case len(context) == 0:
		return "is required"
	case len(context) > event.MaxContextBytes:
		return fmt.Sprintf("must have at most %d bytes", event.MaxContextBytes)
	case !utf8.Valid(context):
		return "must be UTF-8"
	case depth(context) > maxDepth:
		return fmt.Sprintf("must be nested at most %d deep", maxDepth)
	default:
		return ""
	}
}

// depth returns the nesting of text, which is JSON.
func depth(text []byte) int {
	var now, deepest int
	quoted := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			deepest = max(deepest, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return deepest
}

// event returns n as stored.
func (n *NewEvent) event(environment, traceparent string) event.Event {
	if n.Environment != nil {
		environment = *n.Environment
	}
	return event.Event{
		ID: n.ID, Type: n.Type, DateTime: n.DateTime, Environment: environment,
		Context: n.Context, MetadataVersion: n.MetadataVersion, TraceContext: traceparent,
	}
}
