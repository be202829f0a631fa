// Package pipeline moves events from the replication slot to ClickHouse. It is
// the only package that knows both ends.
//
//	receive ─→ open batch ─→ write ─→ ClickHouse
//	   ↑                       │
//	   └──── status ◀── confirmed (after the rows are durable)
//
// A session begins with taking the slot, ending what a predecessor left running
// in ClickHouse, and reading back where the table ends. Every reconnect is such a
// beginning, so there is one way to start and it is exercised all the time.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// Config of a Pipeline. All fields but Shard, Messages and StartLSN are required.
type Config struct {
	PostgresURL string
	Slot        string // of the shard, if there are shards
	Publication string
	Shard       replication.Shard
	// Messages makes messages with our prefix events.
	Messages bool
	// StartLSN skips every commit before it; 0 skips nothing. It must not lie before
	// what the slot has confirmed.
	StartLSN pglogrepl.LSN
	// SenderTimeout is after how long of silence the server drops our session,
	// and we its. A standby takes over from a frozen streamer after this time.
	SenderTimeout time.Duration

	Tables sink.Tables
	Limits batch.Limits
	// FlushInterval is the longest time a row waits for others, and the shortest
	// between the starts of two inserts that are not full.
	FlushInterval time.Duration
	// InsertTimeout bounds one try at an insert, and one at connecting.
	InsertTimeout time.Duration
	// DrainTimeout bounds what happens after Run's context has ended.
	DrainTimeout time.Duration
}

// Pipeline is one streamer. Run may be called once.
type Pipeline struct {
	cfg      Config
	ch       driver.Conn
	log      *slog.Logger
	observer Observer
	progress Progress
	systemID string // of the first server that was reached
	// startJudged: StartLSN was found to be possible.
	startJudged bool
}

// New returns a Pipeline that writes through ch. observer may be nil.
func New(cfg Config, ch driver.Conn, log *slog.Logger, observer Observer) *Pipeline {
	if observer == nil {
		observer = nobody{}
	}
	return &Pipeline{cfg: cfg, ch: ch, log: log, observer: observer}
}

// Progress returns what the pipeline is doing; it may be read at any time.
func (p *Pipeline) Progress() *Progress { return &p.progress }

const (
	firstWait = 200 * time.Millisecond
	maxWait   = 15 * time.Second
	// standbyPoll is how soon a standby notices that the slot is free.
	standbyPoll = time.Second
)

// Run streams until ctx ends, and then drains within DrainTimeout.
//
// Errors: failure.Fatal when an operator must act first; an error after ctx
// has ended means that the last rows could not be landed: they come again at
// the next start. All other errors are retried for ever.
func (p *Pipeline) Run(ctx context.Context) error {
	defer p.progress.setState(Stopped)
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstWait, maxWait
	for {
		began, flushes := time.Now(), p.progress.flushes.Load()
		err := p.session(ctx)
		switch {
		case ctx.Err() != nil:
			return shutdownError(err)
		case failure.Of(err) == failure.Fatal:
			return err
		case errors.Is(err, errSlotFree):
			continue // nothing failed
		}
		if p.progress.flushes.Load() > flushes || time.Since(began) > maxWait {
			wait.Reset() // it did work: this is a new failure
		}
		d := wait.NextBackOff()
		p.progress.fail(err)
		p.observer.SessionEnded(err)
		p.log.Warn("session ended; starting again", "error", err, "wait", d.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(d):
		}
	}
}

// shutdownError keeps what went wrong while draining and drops what the end of ctx caused.
func shutdownError(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("shutdown: %w", err)
}

// session is one connection from its opening to its end.
type session struct {
	*Pipeline
	log     *slog.Logger
	name    string // application name: unique, proves that the slot is ours
	nonce   string
	control *replication.Control
	conn    *replication.Conn
	sink    *sink.Sink
	source  sink.Source
	slot    replication.Slot
	again   pglogrepl.LSN // the commit that was asked for again because its rows have landed; 0 for none
}

func (p *Pipeline) session(ctx context.Context) error {
	s, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return s.stream(ctx)
}

func (s *session) close() {
	if s.conn != nil {
		s.conn.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.control.Close(ctx)
}
