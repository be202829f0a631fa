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

// Outage turns the retries of one dependency into one report: the first failed
// try is sent to Sentry, further ones are counted, and the first success sends
// a closing message to the same issue. Safe for concurrent use.
type Outage struct {
	kind string

	mu    sync.Mutex
	since time.Time // zero: no outage
	tries int
	class failure.Class
}

// NewOutage returns a watch over what kind names, for example "clickhouse".
func NewOutage(kind string) *Outage {
	return &Outage{kind: kind}
}

// Failed notes a failed try. Only the first one of an outage is reported, and
// again if the class of the error changes.
func (o *Outage) Failed(ctx context.Context, err error) {
	if err == nil || errors.Is(ctx.Err(), context.Canceled) {
		return // a try that we gave up ourselves says nothing about the other side
	}
	class := failure.Of(err)
	o.mu.Lock()
	first := o.tries == 0
	if first {
		o.since = time.Now()
	}
	news := first || class != o.class
	o.tries++
	o.class = class
	o.mu.Unlock()
	if news {
		Report(ctx, o.kind, err)
	}
}

// Recovered notes a success. It closes the outage, if there was one.
func (o *Outage) Recovered(ctx context.Context) {
	o.mu.Lock()
	since, tries, class := o.since, o.tries, o.class
	o.since, o.tries = time.Time{}, 0
	o.mu.Unlock()
	if tries == 0 {
		return
	}
	event := issueEvent(o.kind, class)
	event.Level = sentry.LevelInfo
	event.Message = fmt.Sprintf("%s recovered after %s", o.kind, roundDuration(time.Since(since)))
	event.Contexts = map[string]sentry.Context{"outage": {
		"since": since.UTC().Format(time.RFC3339), "failed_tries": tries,
	}}
	hubOf(ctx).CaptureEvent(event)
}

// State returns when the present outage began and how many tries have failed
// since then, or the zero time and 0.
func (o *Outage) State() (since time.Time, tries int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.since, o.tries
}
