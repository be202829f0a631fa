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
// called by the pipeline, one at a time, except for sessionRecovered.
type reports struct {
	clickhouse *telemetry.Outage
	session    *telemetry.Outage
	view       *telemetry.Outage

	flush  *telemetry.Flush
	data   telemetry.FlushData
	traces []string
	dead   []decode.Reject // set aside in this flush
	viewed bool            // a materialized view failed in this flush
}

func newReports() *reports {
	return &reports{
		clickhouse: telemetry.NewOutage("clickhouse"), session: telemetry.NewOutage("session"), view: telemetry.NewOutage("materialized view"),
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
// the rows have landed.
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
	r.dead = append(r.dead, decode.Reject{}) // the first one and the number are told
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
		told := fmt.Errorf("%d rows set aside in one flush; the first: %w", n, deadLetterError(r.dead[0]))
		telemetry.Report(context.Background(), "dead letter", failure.Wrap(failure.Poison, told))
		r.dead = r.dead[:0]
	}
}

func (r *reports) viewFailed(err error) {
	r.viewed = true
	r.view.Failed(context.Background(), err)
}

func (r *reports) sessionFailed(err error) { r.session.Failed(context.Background(), err) }

func (r *reports) sessionRecovered() { r.session.Recovered(context.Background()) }

// deadLetterError tells which row was set aside and by whom. The reason stays in
// the dead-letter table, because it may quote the row.
func deadLetterError(r decode.Reject) error {
	by := "could not be decoded"
	if r.Code != 0 {
		by = "was refused by ClickHouse with " + sink.Name(r.Code)
	}
	return fmt.Errorf("row %s/%d of type %q %s: see `streamer deadletter list`", r.LSN, r.Seq, r.Type, by)
}
