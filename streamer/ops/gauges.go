package ops

import (
	"context"
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"diehard/shared/failure"
	"diehard/streamer/pipeline"
)

// gauge is a metric whose value is read when it is asked for.
type gauge struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(m *Monitor, s snapshot, emit func(value float64, labels ...string))
}

func newGauge(name, help string, kind prometheus.ValueType, read func(m *Monitor, s snapshot, emit func(float64, ...string)), labels ...string) gauge {
	return gauge{prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, name), help, labels, nil), kind, read}
}

var allGauges = []gauge{
	newGauge("rows_read_total", "Rows read from PostgreSQL; rows that are sent again after a lost connection count again.", prometheus.CounterValue,
		func(m *Monitor, _ snapshot, emit func(float64, ...string)) {
			n, _ := m.progress.Read()
			emit(float64(n))
		}),
	newGauge("bytes_read_total", "Bytes of pgoutput that PostgreSQL sent for them.", prometheus.CounterValue,
		func(m *Monitor, _ snapshot, emit func(float64, ...string)) {
			_, n := m.progress.Read()
			emit(float64(n))
		}),
	newGauge("messages_dropped_total", "Events in messages outside of any transaction, which cannot be delivered exactly once and are dropped.", prometheus.CounterValue,
		func(m *Monitor, _ snapshot, emit func(float64, ...string)) {
			emit(float64(m.progress.DroppedMessages()))
		}),
	newGauge("double_encoded_total", "Rows whose context is a JSON string that holds an object or array: their producer encodes twice.", prometheus.CounterValue,
		func(m *Monitor, _ snapshot, emit func(float64, ...string)) { emit(float64(m.doubleEncoded.Load())) }),
	newGauge("rows_flushed_total", "Rows that are durable in ClickHouse.", prometheus.CounterValue,
		func(m *Monitor, _ snapshot, emit func(float64, ...string)) {
			n, _, _ := m.progress.Written()
			emit(float64(n))
		}),
	newGauge("bytes_flushed_total", "Size in memory of the rows that are durable in ClickHouse.", prometheus.CounterValue,
		func(m *Monitor, _ snapshot, emit func(float64, ...string)) {
			_, n, _ := m.progress.Written()
			emit(float64(n))
		}),
	newGauge("buffered_rows", "Rows read and not yet durable.", prometheus.GaugeValue,
		func(m *Monitor, _ snapshot, emit func(float64, ...string)) {
			n, _ := m.progress.Buffered()
			emit(float64(n))
		}),
	newGauge("buffered_bytes", "Memory of the rows read and not yet durable.", prometheus.GaugeValue,
		func(m *Monitor, _ snapshot, emit func(float64, ...string)) {
			_, n := m.progress.Buffered()
			emit(float64(n))
		}),
	newGauge("state", "1 for the state that the streamer is in.", prometheus.GaugeValue, readState, "state"),
	newGauge("degraded", "1 for what is not as it should be although events are delivered.", prometheus.GaugeValue, readDegraded, "cause"),
	newGauge("failure", "1 for the cause of the state failed, which needs an operator.", prometheus.GaugeValue, readFailure, "cause"),
	newGauge("last_flush_timestamp_seconds", "When rows last became durable; 0 if none did since the start.", prometheus.GaugeValue,
		func(m *Monitor, _ snapshot, emit func(float64, ...string)) {
			if at := m.progress.LastFlush(); !at.IsZero() {
				emit(float64(at.UnixMilli()) / 1000)
				return
			}
			emit(0)
		}),
	newGauge("lag_bytes", "WAL between a stage and the end of the WAL; retained is what PostgreSQL keeps for the slot.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			for _, stage := range s.lag.stages() {
				if stage.LSN != "" && up(s.postgres) { // an old number would look like a good one
					emit(float64(stage.Bytes), stage.name)
				}
			}
		}, "stage"),
	newGauge("wal_end_bytes", "Position of the end of PostgreSQL's WAL; its rate is the WAL that all of the server writes.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			if up(s.postgres) {
				emit(float64(s.postgres.last.walEnd))
			}
		}),
	newGauge("lag_seconds", "Age of the oldest WAL that has not passed a stage; what is older than the streamer counts from its start.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			for _, stage := range s.lag.stages() {
				if stage.LSN != "" && stage.Seconds != nil && up(s.postgres) {
					emit(*stage.Seconds, stage.name)
				}
			}
		}, "stage"),
	newGauge("up", "Whether the database answers.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			emit(number(s.postgres.last != nil && s.postgres.failure == nil), "postgresql")
			emit(number(s.clickhouse.last != nil && s.clickhouse.failure == nil), "clickhouse")
		}, "database"),
	newGauge("clock_skew_seconds", "PostgreSQL's clock minus ours.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) { emit(s.skew.Seconds()) }),
	newGauge("slot_active", "Whether the slot is active, for this streamer or another.", prometheus.GaugeValue,
		func(m *Monitor, s snapshot, emit func(float64, ...string)) {
			if s.postgres.last != nil {
				slot := s.postgres.last.Slot(m.opts.Probe.Origin.SlotName())
				emit(number(slot != nil && slot.Active))
			}
		}),
	newGauge("slot_lost", "Whether the slot is missing or PostgreSQL has removed WAL it needed.", prometheus.GaugeValue,
		func(m *Monitor, s snapshot, emit func(float64, ...string)) {
			if s.postgres.last != nil {
				slot := s.postgres.last.Slot(m.opts.Probe.Origin.SlotName())
				emit(number(slot == nil || slot.Lost()))
			}
		}),
	newGauge("slot_safe_wal_bytes", "WAL that may still be written before PostgreSQL invalidates the slot; +Inf without max_slot_wal_keep_size.", prometheus.GaugeValue,
		func(m *Monitor, s snapshot, emit func(float64, ...string)) {
			if w, ok := m.walHeadroom(s); ok {
				emit(orInfinite(w.Limited, float64(w.Bytes)))
			}
		}),
	newGauge("slot_invalidation_seconds", "Time until PostgreSQL invalidates the slot at the present rate; +Inf for never.", prometheus.GaugeValue,
		func(m *Monitor, s snapshot, emit func(float64, ...string)) {
			if w, ok := m.walHeadroom(s); ok && w.Seconds != nil {
				emit(*w.Seconds)
			} else if ok {
				emit(math.Inf(1))
			}
		}),
	newGauge("dead_letters_open", "Rows in the dead-letter table that were neither written since nor dropped.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			if c := s.clickhouse.last; c != nil {
				emit(float64(c.DeadLetters.Open))
			}
		}),
	newGauge("outbox_partitions", "Daily partitions of the outbox; expired and detached ones are on their way out.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			if o := s.outbox.last; o != nil {
				for state, n := range o.states() {
					emit(float64(n), state)
				}
			}
		}, "state"),
	newGauge("outbox_days_ahead", "Days after today that have a partition; -1 if today has none.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			if o := s.outbox.last; o != nil {
				emit(float64(o.Ahead))
			}
		}),
	newGauge("outbox_bytes", "Size of the outbox's daily partitions.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			if o := s.outbox.last; o != nil {
				emit(float64(o.Bytes))
			}
		}),
	newGauge("clickhouse_rows", "Rows of the event log, of all sources.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			if c := s.clickhouse.last; c != nil {
				emit(float64(c.Rows))
			}
		}),
	newGauge("clickhouse_disk_free_bytes", "Free space of ClickHouse's disk with the least free space.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			if c := s.clickhouse.last; c != nil && c.Disk.Total > 0 {
				emit(float64(c.Disk.Free))
			}
		}),
	newGauge("clickhouse_disk_total_bytes", "Size of that disk.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			if c := s.clickhouse.last; c != nil && c.Disk.Total > 0 {
				emit(float64(c.Disk.Total))
			}
		}),
	newGauge("clickhouse_parts", "Active parts of the event log.", prometheus.GaugeValue,
		func(_ *Monitor, s snapshot, emit func(float64, ...string)) {
			if c := s.clickhouse.last; c != nil {
				emit(float64(c.Parts))
			}
		}),
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func orInfinite(finite bool, v float64) float64 {
	if finite {
		return v
	}
	return math.Inf(1)
}

func readState(m *Monitor, _ snapshot, emit func(float64, ...string)) {
	now, _ := m.state()
	states := []string{Failed, Stuck}
	for s := pipeline.Connecting; s <= pipeline.Stopped; s++ {
		states = append(states, s.String())
	}
	for _, s := range states {
		emit(number(s == now), s)
	}
}

func readFailure(m *Monitor, _ snapshot, emit func(float64, ...string)) {
	_, r := m.state()
	for _, c := range failure.Causes {
		emit(number(r.fatal != nil && causeOf(r.fatal) == c), string(c))
	}
}

// walHeadroom is false while PostgreSQL has not answered, or has no slot for us.
func (m *Monitor) walHeadroom(s snapshot) (WALHeadroom, bool) {
	if s.postgres.last == nil {
		return WALHeadroom{}, false
	}
	slot := s.postgres.last.Slot(m.opts.Probe.Origin.SlotName())
	return walHeadroom(slot, s.rate), slot != nil
}

// gauges collects allGauges from one snapshot.
type gauges struct{ *Monitor }

// Describe implements prometheus.Collector.
func (g gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, gauge := range allGauges {
		ch <- gauge.desc
	}
}

// Collect implements prometheus.Collector.
func (g gauges) Collect(ch chan<- prometheus.Metric) {
	if g.progress == nil {
		return // not started
	}
	s := g.sampler.fresh(context.Background())
	for _, gauge := range allGauges {
		gauge.read(g.Monitor, s, func(value float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(gauge.desc, gauge.kind, value, labels...)
		})
	}
}
