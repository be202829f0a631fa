package telemetry

import (
	"regexp"
	"unicode/utf8"

	"github.com/getsentry/sentry-go"
)

// maxErrorText bounds an error text that is sent, in bytes: databases quote whole
// rows in their messages.
const maxErrorText = 600

var secretPatterns = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`://[^/@\s]*@`), "://[hidden]@"},
	{regexp.MustCompile(`(?i)\b(password|passwd|pwd|secret|token|api_?key|authorization)(["']?\s*[=:]\s*)("[^"]*"|'[^']*'|(?:bearer )?[^\s,;&]+)`), "$1$2[hidden]"},
	{regexp.MustCompile(`(?s)\{.*\}`), "{…}"},
	{regexp.MustCompile(`[\w.+%-]+@[\w-]+(\.[\w-]+)+`), "[email]"},
}

// Redact hides credentials, mail addresses and JSON, which the error text of a
// library or a database may quote, and bounds its length.
func Redact(text string) string {
	for _, secret := range secretPatterns {
		text = secret.pattern.ReplaceAllString(text, secret.with)
	}
	if len(text) <= maxErrorText {
		return text
	}
	end := maxErrorText
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// redactEvent is applied to every event before it is sent to Sentry.
func redactEvent(event *sentry.Event, _ *sentry.EventHint) *sentry.Event {
	event.User = sentry.User{}
	event.Request = nil
	event.Breadcrumbs = nil
	event.Attachments = nil
	event.Message = Redact(event.Message)
	for i := range event.Exception {
		event.Exception[i].Value = Redact(event.Exception[i].Value)
	}
	return event
}
