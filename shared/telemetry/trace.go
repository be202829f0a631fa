package telemetry

import (
	"context"
	"net/http"

	"github.com/getsentry/sentry-go"

	"diehard/shared/event"
)

// parseTraceparent returns the parts of a W3C traceparent; ok is false if it is
// invalid.
func parseTraceparent(text string) (traceID, spanID string, sampled, ok bool) {
	if !event.ValidTraceContext(text) {
		return "", "", false, false
	}
	flags := text[len(text)-1]
	return text[3:35], text[36:52], flags%2 == 1, true // '1' is odd as a character, too
}

// sentryTrace returns traceparent as a sentry-trace header. For an unsampled one,
// which gateways send without recording a trace, the sampling decision is ours.
func sentryTrace(traceparent string) string {
	traceID, spanID, sampled, ok := parseTraceparent(traceparent)
	switch {
	case !ok:
		return ""
	case sampled:
		return traceID + "-" + spanID + "-1"
	default:
		return traceID + "-" + spanID
	}
}

type incomingKey struct{}

// ContinueTrace continues the caller's trace from sentry-trace or traceparent. The
// returned context carries it for [Traceparent]; the options are for the
// transaction of the request.
func ContinueTrace(r *http.Request) (context.Context, []sentry.SpanOption) {
	header := r.Header.Get(sentry.SentryTraceHeader)
	traceparent := r.Header.Get(sentry.TraceparentHeader)
	if header == "" {
		header = sentryTrace(traceparent)
	}
	ctx := r.Context()
	if _, _, _, ok := parseTraceparent(traceparent); ok {
		ctx = context.WithValue(ctx, incomingKey{}, traceparent)
	}
	return ctx, []sentry.SpanOption{sentry.ContinueFromHeaders(header, r.Header.Get(sentry.SentryBaggageHeader))}
}

// Traceparent returns the W3C traceparent in ctx: that of its span if traces are
// sent to Sentry, else the caller's, else "".
func Traceparent(ctx context.Context) string {
	if span := sentry.SpanFromContext(ctx); span != nil {
		return span.ToTraceparent()
	}
	incoming, _ := ctx.Value(incomingKey{}).(string)
	return incoming
}
