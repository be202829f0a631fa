package telemetry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/getsentry/sentry-go"

	"diehard/shared/failure"
)

// Outage reports the retries of one dependency once: the first failed attempt is
// sent to Sentry, further ones are counted, and the first success sends a closing
// message to the same issue. Safe for concurrent use.
type Outage struct {
	kind string

	mu       sync.Mutex
	since    time.Time // zero: no outage
	attempts int
	class    failure.Class
}

// NewOutage returns the outage state of a dependency, for example "clickhouse".
func NewOutage(kind string) *Outage {
	return &Outage{kind: kind}
}

// Failed records a failed attempt. It reports the first one of an outage, and one
// whose error has another class than the one before.
func (o *Outage) Failed(ctx context.Context, err error) {
	if err == nil || errors.Is(ctx.Err(), context.Canceled) {
		return // we cancelled the attempt: it says nothing about the dependency
	}
	class := failure.Of(err)
	o.mu.Lock()
	first := o.attempts == 0
	if first {
		o.since = time.Now()
	}
	news := first || class != o.class
	o.attempts++
	o.class = class
	o.mu.Unlock()
	if news {
		Report(ctx, o.kind, err)
	}
}

// Recovered records a success and closes the outage, if there is one.
func (o *Outage) Recovered(ctx context.Context) {
	o.mu.Lock()
	since, attempts, class := o.since, o.attempts, o.class
	o.since, o.attempts = time.Time{}, 0
	o.mu.Unlock()
	if attempts == 0 {
		return
	}
	event := issueEvent(o.kind, class)
	event.Level = sentry.LevelInfo
	event.Message = fmt.Sprintf("%s recovered after %s", o.kind, roundDuration(time.Since(since)))
	event.Contexts = map[string]sentry.Context{"outage": {
		"since": since.UTC().Format(time.RFC3339), "failed_attempts": attempts,
	}}
	hubOf(ctx).CaptureEvent(event)
}
