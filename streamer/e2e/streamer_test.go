package e2e

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/pipeline"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// streamer is a pipeline that runs in this process.
type streamer struct {
	t        testing.TB
	env      *testenv.Env
	cfg      pipeline.Config
	conn     driver.Conn
	pipeline *pipeline.Pipeline
	log      *logbook
	seen     *observer
	cancel   context.CancelFunc
	done     chan struct{}
	err      error // of Run; valid after done
}

// setup is what a test may change before a streamer starts.
type setup struct {
	pipeline.Config
	ClickHouse clickhouse.Config
	Settings   ch.Settings // of every query
}

// start runs a streamer on env until the test ends or stop is called, and waits
// until it has the slot. Only what is committed after its slot was made arrives.
func start(t testing.TB, env *testenv.Env, changes ...func(*setup)) *streamer {
	t.Helper()
	s := launch(t, env, changes...)
	await.True(t, func() bool {
		select {
		case <-s.done:
			require.NoError(t, s.err)
			require.Fail(t, "the streamer has ended")
		default:
		}
		state := s.pipeline.Progress().State() // while ClickHouse refuses, streaming passes in a moment
		return state == pipeline.Streaming || state == pipeline.Retrying
	}, "the streamer never has the slot")
	return s
}

// delivering is start, and n events that have arrived.
func delivering(t testing.TB, env *testenv.Env, n int) *streamer {
	t.Helper()
	s := start(t, env)
	publish(t, env, n)
	delivered(t, env)
	return s
}

// launch is start without the wait.
func launch(t testing.TB, env *testenv.Env, changes ...func(*setup)) *streamer {
	t.Helper()
	c := setup{Config: defaults(env), ClickHouse: env.ClickHouseConfig}
	for _, change := range changes {
		change(&c)
	}
	options, err := clickhouse.Options(c.ClickHouse)
	require.NoError(t, err)
	maps.Copy(options.Settings, c.Settings)
	conn, err := clickhouse.OpenOptions(options)
	require.NoError(t, err)

	s := &streamer{
		t: t, env: env, cfg: c.Config, conn: conn,
		log: newLogbook(t), seen: &observer{}, done: make(chan struct{}),
	}
	s.pipeline = pipeline.New(c.Config, conn, slog.New(s.log), s.seen)
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(t.Context()))
	go func() {
		defer close(s.done)
		s.err = s.pipeline.Run(ctx)
	}()
	t.Cleanup(func() {
		s.cancel()
		<-s.done
		_ = conn.Close()
	})
	return s
}

// defaults are short in every respect, so that tests are.
func defaults(env *testenv.Env) pipeline.Config {
	return pipeline.Config{
		PostgresURL:   env.PostgresURL,
		Origin:        replication.Origin{Slot: env.Slot, Publication: env.Publication},
		SenderTimeout: 10 * time.Second,
		Tables:        sink.Tables{EventLog: env.ClickHouseConfig.EventLogTable, DeadLetter: env.ClickHouseConfig.DeadLetterTable},
		Limits:        batch.Limits{Rows: 10_000, Bytes: 4 << 20},
		FlushInterval: 20 * time.Millisecond,
		InsertTimeout: 30 * time.Second,
		DrainTimeout:  await.Limit,
	}
}

func (s *streamer) await(state pipeline.State) {
	s.t.Helper()
	await.True(s.t, func() bool { return s.pipeline.Progress().State() == state }, "the streamer is never %s", state)
}

// stop ends the streamer in order, as SIGTERM does.
func (s *streamer) stop() {
	s.t.Helper()
	s.cancel()
	<-s.done
	require.NoError(s.t, s.err)
}

// refusal waits until the streamer gives up by itself and returns why.
func (s *streamer) refusal() error {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(await.Limit):
		require.Fail(s.t, "the streamer does not give up", s.pipeline.Progress().State().String())
	}
	require.Error(s.t, s.err)
	require.Equal(s.t, failure.Fatal, failure.Of(s.err), "%v", s.err)
	s.doctorAgrees()
	return s.err
}

// doctorAgrees demands of `streamer doctor` the same sentence as that of a precondition
// which a streamer was refused for.
func (s *streamer) doctorAgrees() {
	s.t.Helper()
	unmet, ok := errors.AsType[*replication.Unmet](s.err)
	if !ok || s.cfg.Origin.SlotName() != s.env.Slot {
		return
	}
	p := runArgs(s.t, s.env, "streamer", []string{"doctor"}, "DATABASE_URL="+s.cfg.PostgresURL)
	assert.Equal(s.t, 2, p.exit(), p.log.text())
	assert.Contains(s.t, p.log.text(), strings.Join(strings.Fields(unmet.Problem), " "))
}

// abrupt makes the end of a streamer like a crash: it writes nothing any more.
func abrupt(c *setup) { c.DrainTimeout = time.Millisecond }

// crash ends a streamer that was started abrupt.
func (s *streamer) crash() {
	s.cancel()
	<-s.done
}

// observer counts what a pipeline reports.
type observer struct {
	retries, sessions, deadLetters, views, missing atomic.Int64

	mu      sync.Mutex
	flushes []pipeline.Flush
	errs    []error // of retries

	failedViews []*sink.ViewError
	started     chan struct{}
}

func (o *observer) FlushStarted(*batch.Batch) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.started != nil {
		close(o.started)
		o.started = nil
	}
}

// nextFlush is closed when the writer next takes a batch with rows.
func (o *observer) nextFlush() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.started == nil {
		o.started = make(chan struct{})
	}
	return o.started
}

func (o *observer) FlushEnded(_ *batch.Batch, f pipeline.Flush, err error) {
	if err == nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.flushes = append(o.flushes, f)
	}
}

func (o *observer) Retry(_ failure.Class, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.errs = append(o.errs, err)
	o.retries.Add(1)
}

func (o *observer) DeadLetter(decode.Reject) { o.deadLetters.Add(1) }
func (o *observer) SessionEnded(error)       { o.sessions.Add(1) }

func (o *observer) EventsMissing(err *pipeline.MissingError) { o.missing.Add(int64(len(err.Rows))) }

func (o *observer) ViewFailed(err *sink.ViewError) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failedViews = append(o.failedViews, err)
	o.views.Add(1)
}

// failed returns what views have failed with.
func (o *observer) failed() []*sink.ViewError {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]*sink.ViewError(nil), o.failedViews...)
}

// durable returns the flushes that succeeded.
func (o *observer) durable() []pipeline.Flush {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]pipeline.Flush(nil), o.flushes...)
}

// retried returns the error of every try that was repeated, as one.
func (o *observer) retried() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return errors.Join(o.errs...)
}
