package ops

import (
	"context"
	"time"

	"diehard/shared/failure"
	"diehard/shared/telemetry"
)

// throughputWindow is over how many seconds throughput is measured.
const throughputWindow = 10

// Status is how a streamer and both its ends stand: the answer of /status, and
// what `streamer status --json` prints.
type Status struct {
	Time        time.Time          `json:"time"`
	Version     string             `json:"version"`
	Build       Build              `json:"build"`
	State       string             `json:"state"`           // as in Readiness; "not running" without a streamer
	Cause       failure.Cause      `json:"cause,omitempty"` // of the state "failed"
	Ready       bool               `json:"ready"`
	Reasons     []string           `json:"reasons"`  // why it is not ready
	Degraded    []string           `json:"degraded"` // as in Readiness
	Started     *time.Time         `json:"started"`
	Lag         Lag                `json:"lag"`
	Throughput  Throughput         `json:"throughput"`
	Totals      Totals             `json:"totals"`
	LastFlush   *time.Time         `json:"last_flush"`
	LastError   *Failure           `json:"last_error"` // the last that was retried
	Failures    []Failure          `json:"failures"`   // the last different ones
	SlotName    string             `json:"slot_name"`
	Slot        *Slot              `json:"slot"` // nil: it does not exist, or PostgreSQL does not answer
	WALHeadroom WALHeadroom        `json:"wal_headroom"`
	Postgres    PostgresEndpoint   `json:"postgresql"`
	Outbox      Outbox             `json:"outbox"`
	ClickHouse  ClickHouseEndpoint `json:"clickhouse"`
}

// Build is the running build.
type Build struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Date    string `json:"date,omitempty"`
	Go      string `json:"go"`
}

// Totals count since the start of the streamer.
type Totals struct {
	Read    int64 `json:"rows_read"`
	Flushed int64 `json:"rows_flushed"`
	Bytes   int64 `json:"bytes_flushed"`
	Flushes int64 `json:"flushes"`
	// DoubleEncoded are rows whose context is a JSON string that holds an object or array.
	DoubleEncoded int64 `json:"double_encoded"`
}

// PostgresEndpoint is PostgreSQL's last answer, or why there is none.
type PostgresEndpoint struct {
	*Postgres
	Up    bool    `json:"up"`
	Error string  `json:"error,omitempty"`
	Skew  float64 `json:"clock_skew_seconds"` // its clock minus ours
}

// ClickHouseEndpoint is ClickHouse's last answer, or why there is none.
type ClickHouseEndpoint struct {
	*ClickHouse
	Up    bool   `json:"up"`
	Error string `json:"error,omitempty"`
}

// endpoints fills in what the databases say.
func (s *Status) endpoints(x snapshot, slot string) {
	s.SlotName, s.Lag = slot, x.lag
	s.Postgres = PostgresEndpoint{Postgres: x.postgres.last, Up: up(x.postgres), Error: text(x.postgres.failure), Skew: x.skew.Seconds()}
	s.ClickHouse = ClickHouseEndpoint{ClickHouse: x.clickhouse.last, Up: up(x.clickhouse), Error: text(x.clickhouse.failure)}
	if o := x.outbox.last; o != nil {
		s.Outbox = *o
	}
	s.Outbox.Error = text(x.outbox.failure)
	if p := x.postgres.last; p != nil {
		s.Slot = p.Slot(slot)
		s.WALHeadroom = walHeadroom(s.Slot, x.rate)
	}
}

func up[T any](e endpoint[T]) bool { return e.last != nil && e.failure == nil }

func text(err error) string {
	if err == nil {
		return ""
	}
	return telemetry.Redact(err.Error())
}

// status is the present Status of the pipeline.
func (m *Monitor) status(ctx context.Context) Status {
	x := m.sampler.fresh(ctx)
	ready := m.readiness(x)
	started := m.started
	s := Status{
		Time: time.Now(), Version: telemetry.Build().Version, Build: Build(telemetry.Build()), State: ready.Status, Cause: ready.Cause, Ready: ready.Ready, Reasons: ready.Reasons, Degraded: ready.Degraded,
		Started: &started, Throughput: m.history.throughput(throughputWindow), Failures: m.failures.latest(),
	}
	s.endpoints(x, m.opts.Probe.Origin.SlotName())
	s.Outbox.Retention = m.opts.Retention.Seconds()
	if m.opts.Maintenance != nil {
		if err := m.opts.Maintenance(); err != nil {
			s.Outbox.Error = text(err)
		}
	}
	s.Totals.Read, _ = m.progress.Read()
	s.Totals.Flushed, s.Totals.Bytes, s.Totals.Flushes = m.progress.Written()
	s.Totals.DoubleEncoded = m.doubleEncoded.Load()
	if at := m.progress.LastFlush(); !at.IsZero() {
		s.LastFlush = &at
	}
	if len(s.Failures) > 0 {
		s.LastError = &s.Failures[0]
	}
	return s
}
