package ops

import (
	"github.com/prometheus/client_golang/prometheus"

	"diehard/shared/failure"
)

const namespace, subsystem = "diehard", "streamer"

// counters are what the pipeline's events add up to.
type counters struct {
	retries       *prometheus.CounterVec
	deadLetters   prometheus.Counter
	viewFailures  prometheus.Counter
	reconnects    prometheus.Counter
	flushFailures prometheus.Counter
	batchRows     prometheus.Histogram
	batchBytes    prometheus.Histogram
	batchAge      prometheus.Histogram
	flushSeconds  prometheus.Histogram
}

func newCounters() *counters {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help, Buckets: buckets})
	}
	seconds := []float64{.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 300, 900, 3600}
	c := &counters{
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "retries_total",
			Help: "Insert attempts that failed and were retried, by class of the error.",
		}, []string{"class"}),
		deadLetters:   counter("dead_letters_total", "Rows written to the dead-letter table."),
		viewFailures:  counter("view_failures_total", "Inserts that were written although a materialized view on event_log failed."),
		reconnects:    counter("reconnects_total", "Connections that ended with an error and were opened again."),
		flushFailures: counter("flush_failures_total", "Batches abandoned with their session; their rows are read again."),
		batchRows:     histogram("batch_rows", "Rows of a batch.", prometheus.ExponentialBuckets(1, 4, 10)),
		batchBytes:    histogram("batch_bytes", "Size of a batch in memory.", prometheus.ExponentialBuckets(1<<10, 4, 10)),
		batchAge:      histogram("batch_age_seconds", "Time from the commit of a batch's first row to the start of its insert.", seconds),
		flushSeconds:  histogram("flush_duration_seconds", "Time from the start of a batch's insert until it is durable, retries included.", seconds),
	}
	for _, class := range []failure.Class{failure.Transient, failure.Poison, failure.Fatal} {
		c.retries.WithLabelValues(class.String()) // a rate needs the 0 before the first one
	}
	return c
}

func (c *counters) register(r prometheus.Registerer) {
	r.MustRegister(c.retries, c.deadLetters, c.viewFailures, c.reconnects, c.flushFailures, c.batchRows, c.batchBytes, c.batchAge, c.flushSeconds)
}
