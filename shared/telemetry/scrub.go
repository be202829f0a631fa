package telemetry

import (
	"regexp"
	"unicode/utf8"

	"github.com/getsentry/sentry-go"
)

// maxErrorText bounds the error text that is sent, in bytes: databases quote
// whole rows in their messages.
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

// Scrub hides what an error text of a library or a database may quote:
// credentials, mail addresses, JSON. It also bounds the length.
func Scrub(text string) string {
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

// scrubEvent is the last look at everything that leaves the process for Sentry.
func scrubEvent(event *sentry.Event, _ *sentry.EventHint) *sentry.Event {
	event.User = sentry.User{}
	event.Request = nil
	event.Breadcrumbs = nil
	event.Attachments = nil
	event.Message = Scrub(event.Message)
	for i := range event.Exception {
		event.Exception[i].Value = Scrub(event.Exception[i].Value)
	}
	return event
}
