package httpapi

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"diehard/api/events"
)

// published counts events by what became of them.
type published struct{ events *prometheus.CounterVec }

// Results of published events.
const (
	resultStored   = "stored"
	resultRepeated = "repeated" // stored by an earlier request with the same idempotency key
	resultRefused  = "refused"  // the caller has to change something
	resultFailed   = "failed"
)

func newPublished(registry prometheus.Registerer) *published {
	m := &published{prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "diehard", Subsystem: "api", Name: "events_total",
		Help: "Events that came with a request, those of new users included, by what became of them.",
	}, []string{"result"})}
	registry.MustRegister(m.events)
	for _, result := range []string{resultStored, resultRepeated, resultRefused, resultFailed} {
		m.events.WithLabelValues(result) // a rate needs the 0 before the first one
	}
	return m
}

// count adds the events of a request, as far as they were read.
func (m *published) count(r events.Receipt, err error) {
	result := resultStored
	_, isProblem := errors.AsType[*Problem](eventsProblem(err, false))
	switch {
	case isProblem:
		result = resultRefused
	case err != nil:
		result = resultFailed
	case r.Repeated:
		result = resultRepeated
	}
	m.events.WithLabelValues(result).Add(float64(len(r.IDs)))
}

// user counts the event of a new user.
func (m *published) user(err error) {
	result := resultStored
	_, isProblem := errors.AsType[*Problem](userProblem(err))
	switch {
	case isProblem:
		result = resultRefused
	case err != nil:
		result = resultFailed
	}
	m.events.WithLabelValues(result).Inc()
}
