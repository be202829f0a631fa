package telemetry

import (
	"context"
	"strings"
	"time"

	"github.com/getsentry/sentry-go"
)

// maxLinkedTraces is the number of traces that a flush is linked to.
const maxLinkedTraces = 16

// FlushData is the data of a finished flush.
type FlushData struct {
	Rows      int // rows of the batch
	Bytes     int // bytes of the batch, uncompressed
	QueueRows int // rows read that wait behind this batch
	Retries   int // failed attempts before the last one
	FirstLSN  string
	LastLSN   string
}

func (d FlushData) fields(took time.Duration) map[string]any {
	return map[string]any{
		"batch_size":  d.Rows,
		"batch_bytes": d.Bytes,
		"duration_ms": float64(took.Microseconds()) / 1000,
		"queue_size":  d.QueueRows,
		"retries":     d.Retries,
		"first_lsn":   d.FirstLSN,
		"last_lsn":    d.LastLSN,
	}
}

// Flush is the Sentry transaction of one batch on its way to ClickHouse. A nil
// Flush is valid and does nothing.
type Flush struct {
	hub    *sentry.Hub
	span   *sentry.Span
	traces []string
}

// StartFlush begins the transaction name for a batch whose rows carry the given
// W3C traceparents (empty and repeated ones do no harm). Up to 16 of the sampled
// traces show the flush, too, as a transaction "deliver_event" under the span
// that published the event. Returns nil when traces are not sent.
func StartFlush(ctx context.Context, name string, traceparents []string) *Flush {
	if !Tracing(ctx) {
		return nil
	}
	hub := hubOf(ctx)
	return &Flush{hub: hub, span: startTask(context.WithoutCancel(ctx), hub, name), traces: sampledTraces(traceparents)}
}

// sampledTraces returns up to maxLinkedTraces different traceparents that are sampled.
func sampledTraces(traceparents []string) []string {
	var kept []string
	seen := map[string]bool{}
	for _, traceparent := range traceparents {
		if !strings.HasSuffix(traceparent, "1") || seen[traceparent] {
			continue
		}
		seen[traceparent] = true
		if _, _, sampled, ok := parseTraceparent(traceparent); ok && sampled {
			kept = append(kept, traceparent)
		}
		if len(kept) == maxLinkedTraces {
			break
		}
	}
	return kept
}

// Finish ends the transaction: status ok, or internal_error if err is not nil.
// The error itself is not sent; see [Outage] and [Report].
func (f *Flush) Finish(data FlushData, err error) {
	if f == nil {
		return
	}
	status := sentry.SpanStatusOK
	if err != nil {
		status = sentry.SpanStatusInternalError
	}
	end := time.Now()
	fields := data.fields(end.Sub(f.span.StartTime))
	for _, traceparent := range f.traces {
		f.deliver(traceparent, status, end, fields)
	}
	finish(f.span, status, end, fields)
}

// deliver adds the flush to the trace of one of its events.
func (f *Flush) deliver(traceparent string, status sentry.SpanStatus, end time.Time, fields map[string]any) {
	span := startTask(context.Background(), f.hub, "deliver_event", sentry.ContinueFromTrace(sentryTrace(traceparent)))
	span.StartTime = f.span.StartTime
	span.SetData("flush.trace_id", f.span.TraceID.String())
	span.SetData("flush.span_id", f.span.SpanID.String())
	finish(span, status, end, fields)
}

// startTask starts a transaction on a clone of hub.
func startTask(ctx context.Context, hub *sentry.Hub, name string, options ...sentry.SpanOption) *sentry.Span {
	ctx = sentry.SetHubOnContext(ctx, hub.Clone())
	return sentry.StartSpan(ctx, "queue.process", append(options,
		sentry.WithTransactionName(name),
		sentry.WithTransactionSource(sentry.SourceTask),
		sentry.WithSpanSampled(sentry.SampledTrue))...)
}

func finish(span *sentry.Span, status sentry.SpanStatus, end time.Time, fields map[string]any) {
	for key, value := range fields {
		span.SetData(key, value)
	}
	span.Status = status
	span.EndTime = end
	span.Finish()
}
