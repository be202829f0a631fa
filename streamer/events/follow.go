package events

import (
	"context"
	"time"

	"diehard/shared/failure"
	"diehard/streamer/sink"
)

const (
	pollInterval = 200 * time.Millisecond
	retryPause   = 2 * time.Second
)

// Follow hands every event to do, and waits for more, until ctx ends or do fails. While
// ClickHouse is unavailable it retries, after it has called unavailable.
//
// Errors: do's; ClickHouse refuses the query.
func (l *Log) Follow(ctx context.Context, do func([]Event) error, unavailable func(error)) error {
	p := poller{unavailable: unavailable}
	for {
		var list []Event
		err := p.ask(ctx, func() (found bool, err error) {
			list, err = l.Next(ctx)
			return len(list) > 0, err
		})
		if err != nil || ctx.Err() != nil {
			return err
		}
		if err := do(list); err != nil {
			return err
		}
	}
}

// AwaitSources is Sources as soon as there is one; none if ctx ends before. While
// ClickHouse is unavailable it retries, after it has called unavailable.
//
// Errors: ClickHouse refuses the query.
func (t *Table) AwaitSources(ctx context.Context, suffix string, unavailable func(error)) (names []string, err error) {
	p := poller{unavailable: unavailable}
	err = p.ask(ctx, func() (found bool, err error) {
		names, err = t.Sources(ctx, suffix)
		return len(names) > 0, err
	})
	return names, err
}

// poller asks again while there is no answer.
type poller struct {
	answered    bool // ClickHouse has run the query before
	unavailable func(error)
}

// ask repeats a question until it finds something or ctx ends.
//
// Errors: ClickHouse refuses a question that it has never answered, or for a reason
// that stays.
func (p *poller) ask(ctx context.Context, question func() (found bool, err error)) error {
	for {
		found, err := question()
		wait := pollInterval
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // ctx has ended the query
		case err == nil:
			p.answered = true
			if found {
				return nil
			}
		case sink.Code(err) != 0 && (!p.answered || failure.Of(sink.Classify(err)) != failure.Transient):
			return err
		default:
			p.unavailable(err)
			wait = retryPause
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
