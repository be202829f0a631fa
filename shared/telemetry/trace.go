package telemetry

import (
	"context"
	"net/http"
	"regexp"

	"github.com/getsentry/sentry-go"
)

// traceparentPattern is a W3C traceparent of version 00.
// Source: W3C Trace Context, "traceparent Header".
var traceparentPattern = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$`)

const (
	zeroTraceID = "00000000000000000000000000000000"
	zeroSpanID  = "0000000000000000"
)

// parseTraceparent returns the parts of a W3C traceparent; ok is false if it is
// invalid.
func parseTraceparent(text string) (traceID, spanID string, sampled, ok bool) {
	m := traceparentPattern.FindStringSubmatch(text)
	if m == nil || m[1] == zeroTraceID || m[2] == zeroSpanID {
		return "", "", false, false
	}
	flags := m[3][1]
	return m[1], m[2], flags%2 == 1, true // '1' is odd as a character, too
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
