package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ErrInvalid marks events that were refused before the database saw them.
var ErrInvalid = errors.New("invalid event")

// The range of event_date_time in the event log.
var (
	earliest = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) // exclusive
)

// ValidTime reports whether event_date_time can be t.
func ValidTime(t time.Time) bool { return !t.Before(earliest) && t.Before(latest) }

// Validate reports whether the outbox would take e, in the sentences of diehard_problem in
// SQL. Errors wrap [ErrInvalid] and never contain the context.
func (e Event) Validate() error {
	if problem := e.problem(); problem != "" {
		return fmt.Errorf("%w: %s", ErrInvalid, problem)
	}
	return nil
}

// problem returns what is wrong with e, which begins with the field's name, or "".
func (e Event) problem() string {
	return firstOf(
		e.typeProblem,
		e.contextProblem,
		func() string { return textProblem("environment", e.Environment, MaxEnvironmentBytes) },
		e.restProblem,
		e.keyProblem,
	)
}

func firstOf(checks ...func() string) string {
	for _, check := range checks {
		if problem := check(); problem != "" {
			return problem
		}
	}
	return ""
}

func (e Event) typeProblem() string {
	switch {
	case e.Type == "":
		return lengthProblem("event_type", MaxTypeBytes) + ": use a named Go type or WithType"
	case len(e.Type) > MaxTypeBytes:
		return lengthProblem("event_type", MaxTypeBytes)
	case !utf8.ValidString(e.Type):
		return "event_type must be UTF-8"
	case hasControl(e.Type) || strings.Trim(e.Type, " ") != e.Type:
		return "event_type must not have control characters, or spaces at its ends"
	default:
		return ""
	}
}

func (e Event) contextProblem() string {
	switch {
	case len(e.Context) == 0:
		return "event_context is missing"
	case len(e.Context) > MaxContextBytes:
		return fmt.Sprintf("event_context must have at most %d bytes", MaxContextBytes)
	case !utf8.Valid(e.Context):
		return "event_context must be UTF-8"
	case !json.Valid(e.Context):
		return "event_context must be JSON"
	default:
		return ""
	}
}

func (e Event) restProblem() string {
	switch {
	case e.MetadataVersion < 0:
		return "metadata_version must be 1 or more"
	case !e.DateTime.IsZero() && !ValidTime(e.DateTime):
		return "event_date_time must be between the years 1900 and 2299"
	case e.TraceContext != "" && !ValidTraceContext(e.TraceContext):
		return "trace_context must be a W3C traceparent of version 00"
	default:
		return ""
	}
}

func (e Event) keyProblem() string {
	if len(e.IdempotencyKey) > MaxKeyBytes {
		return lengthProblem("idempotency_key", MaxKeyBytes)
	}
	return textProblem("idempotency_key", e.IdempotencyKey, MaxKeyBytes)
}

// lengthProblem is the sentence for a field that must not be empty.
func lengthProblem(field string, most int) string {
	return fmt.Sprintf("%s must have 1 to %d bytes", field, most)
}

// textProblem returns what is wrong with a text that may be empty, or "".
func textProblem(field, text string, most int) string {
	switch {
	case len(text) > most:
		return fmt.Sprintf("%s must have at most %d bytes", field, most)
	case !utf8.ValidString(text):
		return field + " must be UTF-8"
	case hasControl(text):
		return field + " must not have control characters"
	default:
		return ""
	}
}

func hasControl(text string) bool { return strings.ContainsFunc(text, unicode.IsControl) }

// ValidTraceContext reports whether s is a traceparent of version 00:
// 00-<32 hex>-<16 hex>-<2 hex>, in lower case, neither id all zero.
//
// Source: W3C Trace Context, "traceparent Header",
// https://www.w3.org/TR/trace-context/#traceparent-header
func ValidTraceContext(s string) bool {
	const length = 55
	if len(s) != length || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return false
	}
	traceID, parentID, flags := s[3:35], s[36:52], s[53:]
	return isHex(traceID) && isHex(parentID) && isHex(flags) &&
		strings.Trim(traceID, "0") != "" && strings.Trim(parentID, "0") != ""
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
