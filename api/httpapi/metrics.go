package httpapi

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"diehard/api/events"
)

// published counts events by what became of them.
type published struct {
	stored   prometheus.Counter
	repeated prometheus.Counter // stored by an earlier request with the same idempotency key
	refused  prometheus.Counter // the caller has to change something, or to try again
	failed   prometheus.Counter
}

func newPublished(registry prometheus.Registerer) *published {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "diehard", Subsystem: "api", Name: "events_total",
		Help: "Events that came with a request, those of new users included, by what became of them.",
	}, []string{"result"})
	registry.MustRegister(vec)
	return &published{
		stored: vec.WithLabelValues("stored"), repeated: vec.WithLabelValues("repeated"),
		refused: vec.WithLabelValues("refused"), failed: vec.WithLabelValues("failed"),
	}
}

// count adds the events of a request, as far as they were read.
func (m *published) count(r events.Receipt, err error) {
	m.result(r.Repeated, eventsProblem(err, false)).Add(float64(len(r.IDs)))
}

// user counts the event of a new user.
func (m *published) user(err error) {
	m.result(false, userProblem(err)).Inc()
}

// result is the counter of a request that ended with err, a problem if that is
// for the caller to solve.
func (m *published) result(repeated bool, err error) prometheus.Counter {
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
