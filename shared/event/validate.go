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

// Validate reports whether the outbox would take e. Errors wrap [ErrInvalid] and
// never contain the context.
func (e Event) Validate() error {
	problem := firstOf(
		e.checkType,
		func() string { return checkText("environment", e.Environment, MaxEnvironmentBytes) },
		func() string { return checkText("idempotency key", e.IdempotencyKey, MaxKeyBytes) },
		e.checkContext,
		e.checkRest,
	)
	if problem != "" {
		return fmt.Errorf("%w: %s", ErrInvalid, problem)
	}
	return nil
}

func firstOf(checks ...func() string) string {
	for _, check := range checks {
		if problem := check(); problem != "" {
			return problem
		}
	}
	return ""
}

func (e Event) checkType() string {
	if e.Type == "" {
		return "the type is empty: use a named Go type or WithType"
	}
	if strings.Trim(e.Type, " ") != e.Type {
		return "the type has spaces at its ends"
	}
	return checkText("type", e.Type, MaxTypeBytes)
}

func (e Event) checkContext() string {
	switch {
	case len(e.Context) > MaxContextBytes:
		return fmt.Sprintf("the context of %s has %d bytes, more than %d", e.Type, len(e.Context), MaxContextBytes)
	case !utf8.Valid(e.Context):
		return fmt.Sprintf("the context of %s is not UTF-8", e.Type)
	case !json.Valid(e.Context):
		return fmt.Sprintf("the context of %s is not JSON", e.Type)
	default:
		return ""
	}
}

func (e Event) checkRest() string {
	switch {
	case e.MetadataVersion < 0:
		return fmt.Sprintf("the metadata version %d is negative", e.MetadataVersion)
	case !e.DateTime.IsZero() && !ValidTime(e.DateTime):
		return fmt.Sprintf("the time %s is not between the years 1900 and 2299", e.DateTime.Format(time.RFC3339))
	case e.TraceContext != "" && !ValidTraceContext(e.TraceContext):
		return "the trace context is not a W3C traceparent"
	default:
		return ""
	}
}

// checkText refuses what the column does not take.
func checkText(what, text string, most int) string {
	switch {
	case len(text) > most:
		return fmt.Sprintf("the %s has %d bytes, more than %d", what, len(text), most)
	case !utf8.ValidString(text):
		return fmt.Sprintf("the %s is not UTF-8", what)
	case strings.IndexFunc(text, unicode.IsControl) >= 0:
		return fmt.Sprintf("the %s contains a control character", what)
	default:
		return ""
	}
}

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
