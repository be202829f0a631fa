package telemetry

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/getsentry/sentry-go"

	"diehard/shared/failure"
)

// SentryConfig connects a program to a Sentry project.
type SentryConfig struct {
	DSN              string  `env:"SENTRY_CONFIG_DSN" secret:"true" example:"https://KEY@sentry.example.com/1" doc:"address of the Sentry project; empty turns Sentry off"`
	Environment      string  `env:"SENTRY_CONFIG_ENVIRONMENT,expand" envDefault:"${ENVIRONMENT}" doc:"environment shown in Sentry; by default the value of ENVIRONMENT"`
	TracesSampleRate float64 `env:"SENTRY_CONFIG_TRACES_SAMPLE_RATE" envDefault:"1" min:"0" max:"1" doc:"fraction of API requests that are traced, 0 to 1; above 0, every flush of the streamer is traced"`
}

// errBadDSN wraps no cause, which would quote the address and its key.
var errBadDSN = failure.Wrap(failure.Fatal, errors.New("SENTRY_CONFIG_DSN is not the address of a Sentry project, as in https://KEY@HOST/PROJECT"))

// Validate refuses an address that Sentry cannot parse.
func (c SentryConfig) Validate() error {
	if c.DSN == "" {
		return nil
	}
	if _, err := sentry.NewDsn(c.DSN); err != nil {
		return errBadDSN
	}
	return nil
}

// closeTimeout bounds the wait for the SDK's goroutines.
const closeTimeout = 2 * time.Second

// InitSentry turns Sentry on for the whole process, or does nothing without a
// DSN. program is a tag on everything that is sent.
//
// flush sends the queued events within the given time and closes the client; call
// it once, at the end of the program.
func InitSentry(cfg SentryConfig, program string) (flush func(time.Duration), err error) {
	if cfg.DSN == "" {
		return func(time.Duration) {}, nil
	}
	client, err := sentry.NewClient(sentry.ClientOptions{
		Dsn:                   cfg.DSN,
		Environment:           cmp.Or(cfg.Environment, "Local"),
		Release:               Build().Release(),
		Tags:                  map[string]string{"program": program},
		EnableTracing:         cfg.TracesSampleRate > 0,
		TracesSampleRate:      cfg.TracesSampleRate,
		MaxBreadcrumbs:        -1, // breadcrumbs would carry log lines
		Integrations:          withoutModules,
		BeforeSend:            redactEvent,
		BeforeSendTransaction: redactEvent,
	})
	if err != nil {
		return nil, errBadDSN
	}
	hub := sentry.CurrentHub()
	hub.BindClient(client)
	return func(timeout time.Duration) {
		client.Flush(timeout)
		hub.BindClient(nil)
		closed := make(chan struct{})
		go func() {
			client.Close()
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(closeTimeout):
		}
	}, nil
}

// withoutModules drops the integration that adds the list of dependencies to events.
func withoutModules(all []sentry.Integration) []sentry.Integration {
	var kept []sentry.Integration
	for _, integration := range all {
		if integration.Name() != "Modules" {
			kept = append(kept, integration)
		}
	}
	return kept
}

// Report sends err to Sentry as one event. Events group into one issue by kind
// (what failed: "clickhouse", "replication") and by the error's failure class.
// The end of a context is no error and is not sent.
func Report(ctx context.Context, kind string, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	class := failure.Of(err)
	event := issueEvent(kind, class)
	event.Level = levelOf(class)
	event.Exception = []sentry.Exception{{
		Type:  kind + ": " + class.String(),
		Value: err.Error(),
	}}
	hubOf(ctx).CaptureEvent(event)
}

// issueEvent is an event that belongs to the issue of kind and class.
func issueEvent(kind string, class failure.Class) *sentry.Event {
	event := sentry.NewEvent()
	event.Fingerprint = []string{kind, class.String()}
	event.Tags = map[string]string{"kind": kind, "class": class.String()}
	return event
}

func levelOf(class failure.Class) sentry.Level {
	switch class {
	case failure.Transient:
		return sentry.LevelWarning
	case failure.Fatal:
		return sentry.LevelFatal
	default:
		return sentry.LevelError
	}
}

func hubOf(ctx context.Context) *sentry.Hub {
	if hub := sentry.GetHubFromContext(ctx); hub != nil {
		return hub
	}
	return sentry.CurrentHub()
}

// Tracing reports whether transactions are sent. If not, trace contexts need not be
// collected.
func Tracing(ctx context.Context) bool {
	client := hubOf(ctx).Client()
	return client.IsEnabled() && client.Options().EnableTracing
}
