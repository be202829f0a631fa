// Package ops shows what a streamer is doing: health, metrics, status and the
// live page over HTTP, and flushes and outages to Sentry.
//
// A Monitor learns from the pipeline (as its Observer, and by its Progress) and
// asks both databases once in a while. Requests are answered from what is known,
// so that no number of them burdens a database.
package ops

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"diehard/shared/telemetry"
	"diehard/streamer/pipeline"
	"diehard/streamer/retention"
)

// Options of a Monitor. Addr, Probe and Log are required.
type Options struct {
	Addr   string // to listen on, host:port
	Probe  *Probe
	MaxLag int64 // bytes of unconfirmed WAL above which the streamer is not ready; 0: no limit
	// Retention is how long delivered events stay in the outbox; 0: for ever.
	Retention time.Duration
	Log       *slog.Logger
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

	// Set by Start, before the pipeline runs.
	progress *pipeline.Progress
	sampler  *sampler
	keeper   *retention.Keeper
	stopping func() bool
	addr     string
}

// NewMonitor returns a Monitor to give to pipeline.New.
func NewMonitor(o Options) *Monitor {
	m := &Monitor{
		opts: o, started: time.Now(), registry: telemetry.NewRegistry(),
		counters: newCounters(), latency: newLatency(), history: &history{}, failures: &failures{}, reports: newReports(),
	}
	m.counters.register(m.registry)
	m.registry.MustRegister(m.latency, gauges{m})
	return m
}

// Start begins to watch and to answer requests. Call it before the pipeline
// runs, and stop after its end: until then the shutdown can be watched, too.
//
// Errors: the address cannot be used.
func (m *Monitor) Start(ctx context.Context, progress *pipeline.Progress) (stop func(), err error) {
	m.progress, m.stopping = progress, func() bool { return ctx.Err() != nil }
	m.sampler = &sampler{probe: m.opts.Probe, progress: progress}
	m.keeper = &retention.Keeper{
		Postgres: m.opts.Probe.Postgres, Retention: m.opts.Retention, Log: m.opts.Log,
		Active: func() bool { return progress.State() == pipeline.Streaming },
	}
	listener, err := listen(ctx, m.opts.Addr)
	if err != nil {
		return nil, err
	}
	m.addr = listener.Addr().String()
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var group sync.WaitGroup
	group.Go(func() { m.sampler.run(watching) })
	group.Go(func() { m.keeper.Run(watching) })
	group.Go(func() { every(watching, time.Second, m.tick) })
	group.Go(func() { serve(watching, listener, m.handler(), m.opts.Log) })
	m.opts.Log.Info("watch", "page", "http://"+m.addr)
	return func() {
		cancel()
		group.Wait()
	}, nil
}

// Addr is the address that Start listens on, with the port that was free if it was to be any.
func (m *Monitor) Addr() string { return m.addr }

// tick takes a point for the charts, and notes when a session is well again.
func (m *Monitor) tick() {
	m.history.tick(time.Now(), m.progress, m.latency.snapshot(), m.sampler.get().lag)
	if state := m.progress.State(); state == pipeline.Streaming || state == pipeline.Standby {
		m.reports.sessionRecovered()
	}
}
