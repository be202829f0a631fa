package ops

import (
	"fmt"
	"time"

	"diehard/shared/settings"
	"diehard/streamer/pipeline"
)

// stale is how old PostgreSQL's last answer may be.
const stale = 15 * time.Second

// Readiness is the answer of /readyz.
//
// A standby is ready: a rolling update starts the new streamer before it ends
// the old one, which holds the slot until then. If only the holder were ready,
// the update would wait for ever.
type Readiness struct {
	Status  string   `json:"status"` // streaming, standby, connecting, retrying, stopping or stopped
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons"` // why it is not; empty if it is
}

func (m *Monitor) readiness(x sample) Readiness {
	state := m.progress.State()
	r := Readiness{Status: state.String(), Reasons: []string{}}
	because := func(format string, args ...any) { r.Reasons = append(r.Reasons, fmt.Sprintf(format, args...)) }
	if m.stopping() && state != pipeline.Stopped {
		r.Status = "stopping"
		because("the streamer is shutting down")
	}
	m.stateReasons(state, because)
	endReasons("PostgreSQL", x.postgres, because)
	endReasons("ClickHouse", x.clickhouse, because)
	if up(x.postgres) {
		m.slotReasons(state, x, because)
	}
	r.Ready = len(r.Reasons) == 0
	return r
}

func (m *Monitor) stateReasons(state pipeline.State, because func(string, ...any)) {
	err, _ := m.progress.LastError()
	cause := ""
	if err != nil {
		cause = ": " + text(err)
	}
	switch state {
	case pipeline.Connecting:
		because("the streamer has not begun to stream%s", cause)
	case pipeline.Retrying:
		because("ClickHouse does not take the present batch%s", cause)
	case pipeline.Stopped:
		because("the streamer has stopped")
	case pipeline.Streaming, pipeline.Standby:
	}
}

func endReasons[T any](name string, e end[T], because func(string, ...any)) {
	switch {
	case e.failure != nil:
		because("%s has not answered since %s: %s", name, e.since.UTC().Format(time.TimeOnly), text(e.failure))
	case e.last == nil:
		because("%s has not been asked yet", name)
	case time.Since(e.at) > stale:
		because("%s answered last at %s", name, e.at.UTC().Format(time.TimeOnly))
	}
}

func (m *Monitor) slotReasons(state pipeline.State, x sample, because func(string, ...any)) {
	name := m.opts.Probe.Slot
	slot := x.postgres.last.Slot(name)
	if slot == nil {
		because("slot %s does not exist", name)
		return
	}
	if state == pipeline.Streaming && x.state == state && slot.Holder != m.progress.Session() {
		because("slot %s is held by another session (%s)", name, slot.Holder)
	}
	if m.opts.MaxLag > 0 && slot.LagBytes > m.opts.MaxLag {
		because("the slot is %s behind, more than STREAMER_MAX_LAG allows (%s)",
			settings.Bytes(slot.LagBytes), settings.Bytes(m.opts.MaxLag))
	}
}
