// Package ops shows what a streamer is doing: health, metrics, status and the
// live page over HTTP, and flushes and outages to Sentry.
//
// A Monitor observes the pipeline (as its Observer, and by its Progress) and asks
// both databases periodically. Requests are answered from the last answers, so that
// many requests do not load a database.
package ops

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"diehard/shared/failure"
	"diehard/shared/hostcheck"
	"diehard/shared/telemetry"
	"diehard/streamer/pipeline"
)

// Options of a Monitor. Addr, Probe and Log are required.
type Options struct {
	Addr   string // to listen on, host:port
	Probe  *Probe
	MaxLag int64 // bytes of unconfirmed WAL above which the streamer is not ready; 0: no limit
	// Hosts are the names that requests to a loopback address may have as Host, beside localhost.
	Hosts []string
	// Environment and Shard become labels of the metrics, beside the slot.
	Environment, Shard string
	// Retention is how long delivered events stay in the outbox; 0: no retention.
	Retention time.Duration
	// Maintenance is the last error of partition maintenance; nil: there is none.
	Maintenance func() error
	Log         *slog.Logger
}

// Monitor watches one pipeline. It implements pipeline.Observer.
type Monitor struct {
	opts     Options
	started  time.Time
	registry *prometheus.Registry
	counters *counters
	latency  *latency
	history  *history
	failures *failures
	reports  *reports
	trouble  *trouble
	views    *failingView
	// doubleEncoded counts rows whose context is a JSON string that holds an object or array.
	doubleEncoded atomic.Int64
	missing       atomic.Int64 // events, after failovers

	// Set by Start, before the pipeline runs.
	progress *pipeline.Progress
	sampler  *sampler
	stopping func() bool
	addr     string
}

// NewMonitor returns a Monitor to give to pipeline.New.
func NewMonitor(o Options) *Monitor {
	m := &Monitor{
		opts: o, started: time.Now(), registry: telemetry.NewRegistry(),
		counters: newCounters(), latency: newLatency(), history: &history{}, failures: &failures{}, reports: newReports(), trouble: &trouble{}, views: &failingView{},
	}
	labeled := prometheus.WrapRegistererWith(prometheus.Labels{
		"environment": o.Environment, "slot": o.Probe.Origin.SlotName(), "shard": o.Shard,
	}, m.registry)
	m.counters.register(labeled)
	labeled.MustRegister(m.latency, gauges{m})
	return m
}

// Start begins to watch and to answer requests. Call it before the pipeline
// runs, and stop after its end: until then the shutdown can be watched, too.
//
// Errors: the address cannot be used.
func (m *Monitor) Start(ctx context.Context, progress *pipeline.Progress) (stop func(), err error) {
	m.progress, m.stopping = progress, func() bool { return ctx.Err() != nil }
	m.sampler = &sampler{probe: m.opts.Probe, progress: progress}
	listener, err := listen(ctx, m.opts.Addr)
	if err != nil {
		return nil, err
	}
	m.addr = listener.Addr().String()
	handler := m.handler()
	if hostcheck.IsLoopback(listener.Addr()) {
		handler = hostcheck.Protect(handler, m.opts.Hosts)
	}
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var group sync.WaitGroup
	group.Go(func() { m.sampler.run(watching) })
	group.Go(func() { every(watching, time.Second, m.tick) })
	group.Go(func() { serve(watching, listener, handler, m.opts.Log) })
	m.opts.Log.Info("serving the live page", "page", "http://"+m.addr)
	return func() {
		cancel()
		group.Wait()
	}, nil
}

// Failed notes a fatal error, which an operator must act on, until the pipeline
// works again. It says so only once per error.
func (m *Monitor) Failed(err error) {
	m.trouble.failed(err)
	m.failures.note("streamer", failure.Fatal, err)
	m.reports.failed(err)
}

// Addr is the address that Start listens on, with the port that was free if it was to be any.
func (m *Monitor) Addr() string { return m.addr }

// tick takes a point for the charts, and notes when a session has recovered.
func (m *Monitor) tick() {
	m.history.tick(time.Now(), m.progress, m.latency.snapshot(), m.sampler.get().lag)
	if state := m.progress.State(); state == pipeline.Streaming || state == pipeline.Standby {
		m.reports.sessionRecovered()
		m.reports.recovered()
	}
}
