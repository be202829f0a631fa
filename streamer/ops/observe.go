package ops

import (
	"time"

	"diehard/shared/event"
	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/pipeline"
	"diehard/streamer/sink"
)

// FlushStarted implements pipeline.Observer.
func (m *Monitor) FlushStarted(b *batch.Batch) {
	rows := b.Len() + len(b.Rejects)
	m.counters.batchRows.Observe(float64(rows))
	m.counters.batchBytes.Observe(float64(b.Bytes()))
	if len(b.CommitTime) > 0 {
		age := m.sampler.now().Sub(time.UnixMicro(b.CommitTime[0]))
		m.counters.batchAge.Observe(max(0, age.Seconds()))
	}
	queued, _ := m.progress.Buffered()
	m.views.flushStarted()
	m.reports.flushStarted(b, int(queued)-rows)
}

// FlushEnded implements pipeline.Observer.
func (m *Monitor) FlushEnded(b *batch.Batch, f pipeline.Flush, err error) {
	m.reports.flushEnded(f, err)
	if err != nil {
		m.counters.flushFailures.Inc()
		return
	}
	m.counters.flushSeconds.Observe(f.Took.Seconds())
	m.history.flushed(f)
	if f.Rows > 0 {
		m.views.wrote()
	}
	for i := range b.Len() {
		if event.DoubleEncoded(b.ContextAt(i)) {
			m.doubleEncoded.Add(1)
		}
	}
	if n := len(b.CommitTime); n > 0 {
		m.latency.observe(b.CommitTime, m.sampler.now())
		m.sampler.committed(b.Position(n-1).LSN, time.UnixMicro(b.CommitTime[n-1]))
	}
}

// Retry implements pipeline.Observer.
func (m *Monitor) Retry(class failure.Class, err error) {
	m.counters.retries.WithLabelValues(class.String()).Inc()
	m.failures.note("clickhouse", class, err)
	m.reports.retry(err)
}

// ViewFailed implements pipeline.Observer.
func (m *Monitor) ViewFailed(err *sink.ViewError) {
	m.counters.viewFailures.Inc()
	m.views.failed(err)
	m.failures.note("materialized view", failure.Of(err), err)
	m.reports.viewFailed(err)
}

// DeadLetter implements pipeline.Observer.
func (m *Monitor) DeadLetter(r decode.Reject) {
	m.counters.deadLetters.Inc()
	m.failures.note("dead letter", failure.Poison, deadLetterError(r))
	m.reports.deadLetter(r)
}

// EventsMissing implements pipeline.Observer.
func (m *Monitor) EventsMissing(err *pipeline.MissingError) {
	m.missing.Add(int64(len(err.Rows)))
	m.failures.note("missing events", failure.Of(err), err)
	m.reports.eventsMissing(err)
}

// SessionEnded implements pipeline.Observer.
func (m *Monitor) SessionEnded(err error) {
	m.counters.reconnects.Inc()
	m.failures.note("session", failure.Of(err), err)
	m.trouble.sessionEnded(m.progress, err)
	m.reports.sessionFailed(err)
}
