package httpapi

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"diehard/api/events"
)

// eventCounter counts events by result.
type eventCounter struct {
	stored   prometheus.Counter
	repeated prometheus.Counter // stored by an earlier request with the same idempotency key
	refused  prometheus.Counter // the client must change the request or retry
	failed   prometheus.Counter
}

func newEventCounter(registry prometheus.Registerer) *eventCounter {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "diehard", Subsystem: "api", Name: "events_total",
		Help: "Events received with a request, those of new users included, by result.",
	}, []string{"result"})
	registry.MustRegister(vec)
	return &eventCounter{
		stored: vec.WithLabelValues("stored"), repeated: vec.WithLabelValues("repeated"),
		refused: vec.WithLabelValues("refused"), failed: vec.WithLabelValues("failed"),
	}
}

// count adds the events that were read of a request.
func (m *eventCounter) count(r events.Result, err error) {
	m.result(r.Repeated, eventsProblem(err, false)).Add(float64(len(r.IDs)))
}

// user counts the event of a new user.
func (m *eventCounter) user(repeated bool, err error) {
	m.result(repeated, userProblem(err)).Inc()
}

// result returns the counter for a request that ended with err, a problem if the
// client caused it.
func (m *eventCounter) result(repeated bool, err error) prometheus.Counter {
	_, refused := errors.AsType[*Problem](err)
	switch {
	case refused:
		return m.refused
	case err != nil:
		return m.failed
	case repeated:
		return m.repeated
	default:
		return m.stored
	}
}
