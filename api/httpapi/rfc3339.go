package httpapi

import (
	"regexp"
	"strings"
	"time"
)

// maxTimeBytes leaves room for more digits than PostgreSQL keeps.
const maxTimeBytes = 64

// timePattern is the grammar of a date-time. [time.Parse] accepts more: a decimal
// comma, hours of one digit, offsets of 24 hours and of 60 minutes.
//
// Source: RFC 3339, "Internet Date/Time Format".
var timePattern = regexp.MustCompile(`^\d{4}-\d\d-\d\d[Tt]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// parseTime reads a date-time. A leap second, which is the last one of a month in UTC,
// counts as the second after it, as in PostgreSQL.
func parseTime(text string) (at time.Time, ok bool) {
	const seconds = len("2006-01-02T15:04:")
	if len(text) > maxTimeBytes || !timePattern.MatchString(text) {
		return at, false
	}
	text = strings.ToUpper(text)
	leap := text[seconds:seconds+2] == "60"
	if leap {
		text = text[:seconds] + "59" + text[seconds+2:]
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || at.IsZero() {
		return at, false
	}
	if !leap {
		return at, true
	}
	at = at.Add(time.Second)
	utc := at.UTC()
	return at, utc.Day() == 1 && utc.Truncate(24*time.Hour).Equal(utc.Truncate(time.Second))
}
