package ops

import (
	"fmt"
	"strings"
	"time"

	"diehard/shared/failure"
	"diehard/shared/settings"
	"diehard/streamer/pipeline"
	"diehard/streamer/replication"
)

// stale is how old PostgreSQL's last answer may be.
const stale = 15 * time.Second

// Readiness is the answer of /readyz.
//
// A standby is ready: a rolling update starts the new streamer before it ends
// the old one, which holds the slot until then. If only the holder were ready,
// the update would wait for ever.
type Readiness struct {
	Status  string        `json:"status"` // streaming, standby, connecting, retrying, stuck, failed, stopping or stopped
	Ready   bool          `json:"ready"`
	Cause   failure.Cause `json:"cause,omitempty"` // of the status "failed"
	Reasons []string      `json:"reasons"`         // why it is not; empty if it is
	// Degraded says what is not as it should be although events are delivered: a materialized view fails,
	// many events become dead letters, or some are missing after a failover.
	Degraded []string `json:"degraded"`
}

func (m *Monitor) readiness(x snapshot) Readiness {
	state := m.progress.State()
	r := Readiness{Reasons: []string{}, Degraded: reasons(m.degraded(x))}
	var trouble report
	r.Status, trouble = m.state()
	because := func(format string, args ...any) { r.Reasons = append(r.Reasons, fmt.Sprintf(format, args...)) }
	if m.stopping() && state != pipeline.Stopped {
		r.Status = "stopping"
		because("the streamer is shutting down")
	}
	if trouble.fatal != nil {
		r.Cause = causeOf(trouble.fatal)
	}
	m.stateReasons(state, trouble, because)
	endpointReasons("PostgreSQL", x.postgres, because)
	endpointReasons("ClickHouse", x.clickhouse, because)
	if up(x.postgres) {
		m.slotReasons(state, x, because)
	}
	r.Ready = len(r.Reasons) == 0
	return r
}

func (m *Monitor) stateReasons(state pipeline.State, t report, because func(string, ...any)) {
	switch {
	case t.fatal != nil:
		because("the streamer cannot run: %s", text(t.fatal))
		return
	case t.stuck != nil:
		because("the stream has failed %d times in the transaction committed at %s: %s. Fix the cause; or skip the transaction with "+
			"`streamer run --start-lsn %s`, and fill it with `streamer replay --from-table`", t.times, t.position, text(t.stuck), t.position+1)
		return
	}
	cause := m.lastError()
	switch state {
	case pipeline.Connecting:
		because("the streamer is not streaming%s", cause)
		if what := m.progress.WaitsFor(); what != "" {
			because("it waits for %s", what)
		}
	case pipeline.Retrying:
		because("the insert of the present batch fails%s", cause)
	case pipeline.Stopped:
		because("the streamer has stopped")
	case pipeline.Streaming, pipeline.Standby:
	}
}

func endpointReasons[T any](name string, e endpoint[T], because func(string, ...any)) {
	switch {
	case e.failure != nil:
		because("%s has not answered since %s: %s", name, e.since.UTC().Format(time.TimeOnly), text(e.failure))
	case e.last == nil:
		because("%s has not been asked yet", name)
	case time.Since(e.at) > stale:
		because("%s answered last at %s", name, e.at.UTC().Format(time.TimeOnly))
	}
}

func (m *Monitor) slotReasons(state pipeline.State, x snapshot, because func(string, ...any)) {
	name := m.opts.Probe.Origin.SlotName()
	slot := x.postgres.last.Slot(name)
	if slot == nil {
		because("slot %s does not exist", name)
		return
	}
	m.holderReasons(state, x, slot, because)
	if m.opts.MaxLag > 0 && slot.LagBytes > m.opts.MaxLag {
		because("the slot is %s behind, more than STREAMER_MAX_LAG allows (%s)",
			settings.Bytes(slot.LagBytes), settings.Bytes(m.opts.MaxLag))
	}
}

// holderReasons says what is wrong with the session that streams from the slot. It
// is asked while the pipeline's state is the one that the snapshot was taken in.
func (m *Monitor) holderReasons(state pipeline.State, x snapshot, slot *Slot, because func(string, ...any)) {
	switch {
	case x.state != state:
	case slot.Creating():
		because("slot %s is being created: PostgreSQL waits for running and prepared transactions that have written", slot.Name)
	case state == pipeline.Streaming && !slot.Active:
		because("slot %s is inactive: the connection to PostgreSQL is lost%s", slot.Name, m.lastError())
	case state == pipeline.Streaming && len(slot.WaitsFor) > 0:
		because("PostgreSQL sends nothing until the standby of slot %s is connected: start it, or take it out of synchronized_standby_slots", strings.Join(slot.WaitsFor, ", "))
	case state == pipeline.Streaming && slot.Holder != m.progress.Session():
		because("slot %s is active for another session (%s)", slot.Name, slot.Holder)
	case state == pipeline.Standby && slot.Active && !replication.IsStreamer(slot.Holder):
		because("slot %s is active for %q, which is not a streamer: end that session, and find out what it has confirmed", slot.Name, slot.Holder)
	}
}

// lastError is how a reason ends: with the last error that was retried.
func (m *Monitor) lastError() string {
	if err, _ := m.progress.LastError(); err != nil {
		return ": " + text(err)
	}
	return ""
}
