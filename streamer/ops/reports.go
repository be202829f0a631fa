package ops

import (
	"context"
	"fmt"
	"slices"

	"diehard/shared/failure"
	"diehard/shared/telemetry"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/pipeline"
	"diehard/streamer/sink"
)

// transaction is the name of a flush in Sentry.
const transaction = "process_outbox_events"

// reports sends flushes, outages and dead letters to Sentry. Its methods are
// called by the pipeline, one at a time, except for recovered and sessionRecovered.
type reports struct {
	clickhouse *telemetry.Outage
	session    *telemetry.Outage
	view       *telemetry.Outage
	streamer   *telemetry.Outage

	flush  *telemetry.Flush
	data   telemetry.FlushData
	traces []string
	dead   []decode.Reject // written to the dead-letter table in this flush
	viewed bool            // a materialized view failed in this flush
}

func newReports() *reports {
	return &reports{
		clickhouse: telemetry.NewOutage("clickhouse"), session: telemetry.NewOutage("session"), view: telemetry.NewOutage("materialized view"),
		streamer: telemetry.NewOutage("streamer"),
	}
}

func (r *reports) flushStarted(b *batch.Batch, queued int) {
	r.dead, r.viewed = r.dead[:0], false
	if !telemetry.Tracing(context.Background()) {
		return
	}
	r.data = telemetry.FlushData{
		Rows: b.Len(), Bytes: b.Bytes(), QueueRows: max(0, queued),
		FirstLSN: b.First().LSN.String(), LastLSN: b.Last().LSN.String(),
	}
	r.traces = slices.Clone(b.Traces)
	r.flush = telemetry.StartFlush(context.Background(), transaction, r.traces)
}

// retry ends the transaction of a flush at its first failure: an outage must be
// seen while it lasts. The flush goes on as a second transaction, which ends when
// the rows are written.
func (r *reports) retry(err error) {
	r.clickhouse.Failed(context.Background(), err)
	r.data.Retries++
	if r.data.Retries == 1 && r.flush != nil {
		r.flush.Finish(r.data, err)
		r.flush = telemetry.StartFlush(context.Background(), transaction, r.traces)
	}
}

func (r *reports) deadLetter(x decode.Reject) {
	if len(r.dead) == 0 {
		r.dead = append(r.dead, x)
		return
	}
	r.dead = append(r.dead, decode.Reject{}) // the report has the first one and the number
}

func (r *reports) flushEnded(f pipeline.Flush, err error) {
	r.data.Retries = f.Retries
	r.flush.Finish(r.data, err)
	r.flush, r.data, r.traces = nil, telemetry.FlushData{}, nil
	if err == nil {
		r.clickhouse.Recovered(context.Background())
		if !r.viewed {
			r.view.Recovered(context.Background())
		}
	}
	if n := len(r.dead); n > 0 {
		report := fmt.Errorf("%d rows written to the dead-letter table in one flush; the first: %w", n, deadLetterError(r.dead[0]))
		telemetry.Report(context.Background(), "dead letter", failure.Wrap(failure.Poison, report))
		r.dead = r.dead[:0]
	}
}

func (r *reports) viewFailed(err error) {
	r.viewed = true
	r.view.Failed(context.Background(), err)
}

func (r *reports) eventsMissing(err error) {
	telemetry.Report(context.Background(), "missing events", err)
}

func (r *reports) failed(err error) { r.streamer.Failed(context.Background(), err) }

func (r *reports) recovered() { r.streamer.Recovered(context.Background()) }

func (r *reports) sessionFailed(err error) { r.session.Failed(context.Background(), err) }

func (r *reports) sessionRecovered() { r.session.Recovered(context.Background()) }

// deadLetterError says which row became a dead letter and what refused it. The reason stays in
// the dead-letter table, because it may quote the row.
func deadLetterError(r decode.Reject) error {
	by := "could not be decoded"
	if r.Code != 0 {
		by = "was refused by ClickHouse with " + sink.Name(r.Code)
	}
	return fmt.Errorf("row %s/%d of type %q %s: see `streamer deadletter list`", r.LSN, r.Seq, r.Type, by)
}
