package ops

import (
	"context"
	"time"

	"diehard/shared/telemetry"
)

// throughputWindow is over how many seconds throughput is measured.
const throughputWindow = 10

// Status is how a streamer and both its ends stand: the answer of /status, and
// what `streamer status --json` prints.
type Status struct {
	Time       time.Time     `json:"time"`
	Version    string        `json:"version"`
	State      string        `json:"state"` // of the pipeline; "not running" when it was asked for without one
	Ready      bool          `json:"ready"`
	Reasons    []string      `json:"reasons"` // why it is not ready
	Started    *time.Time    `json:"started"`
	Lag        Lag           `json:"lag"`
	Throughput Throughput    `json:"throughput"`
	Totals     Totals        `json:"totals"`
	LastFlush  *time.Time    `json:"last_flush"`
	LastError  *Failure      `json:"last_error"` // the last that was retried
	Failures   []Failure     `json:"failures"`   // the last different ones
	SlotName   string        `json:"slot_name"`
	Slot       *Slot         `json:"slot"` // nil: it does not exist, or PostgreSQL does not answer
	Runway     Runway        `json:"runway"`
	Postgres   PostgresEnd   `json:"postgresql"`
	Outbox     Outbox        `json:"outbox"`
	ClickHouse ClickHouseEnd `json:"clickhouse"`
}

// Totals count since the start of the streamer.
type Totals struct {
	Read    int64 `json:"events_read"`
	Flushed int64 `json:"events_flushed"`
	Bytes   int64 `json:"bytes_flushed"`
	Flushes int64 `json:"flushes"`
}

// PostgresEnd is PostgreSQL's last answer, or why there is none.
type PostgresEnd struct {
	*Postgres
	Up    bool    `json:"up"`
	Error string  `json:"error,omitempty"`
	Skew  float64 `json:"clock_skew_seconds"` // its clock minus ours
}

// ClickHouseEnd is ClickHouse's last answer, or why there is none.
type ClickHouseEnd struct {
	*ClickHouse
	Up    bool   `json:"up"`
	Error string `json:"error,omitempty"`
}

// ends fills what the databases say.
func (s *Status) ends(x sample, slot string) {
	s.SlotName, s.Lag = slot, x.lag
	s.Postgres = PostgresEnd{Postgres: x.postgres.last, Up: up(x.postgres), Error: text(x.postgres.failure), Skew: x.skew.Seconds()}
	s.ClickHouse = ClickHouseEnd{ClickHouse: x.clickhouse.last, Up: up(x.clickhouse), Error: text(x.clickhouse.failure)}
	if o := x.outbox.last; o != nil {
		s.Outbox = *o
	}
	s.Outbox.Error = text(x.outbox.failure)
	if p := x.postgres.last; p != nil {
		s.Slot = p.Slot(slot)
		s.Runway = runway(s.Slot, x.rate)
	}
}

func up[T any](e end[T]) bool { return e.last != nil && e.failure == nil }

func text(err error) string {
	if err == nil {
		return ""
	}
	return telemetry.Scrub(err.Error())
}

// status is the present Status of the pipeline.
func (m *Monitor) status(ctx context.Context) Status {
	x := m.sampler.fresh(ctx)
	ready := m.readiness(x)
	started := m.started
	s := Status{
		Time: time.Now(), Version: telemetry.Build().Version, State: ready.Status, Ready: ready.Ready, Reasons: ready.Reasons,
		Started: &started, Throughput: m.history.throughput(throughputWindow), Failures: m.failures.latest(),
	}
	s.ends(x, m.opts.Probe.Slot)
	s.Outbox.Retention = m.opts.Retention.Seconds()
	if err := m.keeper.Err(); err != nil {
		s.Outbox.Error = text(err)
	}
	s.Totals.Read, _ = m.progress.Read()
	s.Totals.Flushed, s.Totals.Bytes, s.Totals.Flushes = m.progress.Landed()
	if at := m.progress.LastFlush(); !at.IsZero() {
		s.LastFlush = &at
	}
	if len(s.Failures) > 0 {
		s.LastError = &s.Failures[0]
	}
	return s
}
