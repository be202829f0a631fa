// Package pipeline moves events from the replication slot to ClickHouse. It is
// the only package that knows both ends.
//
//	receive ─→ open batch ─→ write ─→ ClickHouse
//	   ↑                       │
//	   └──── status ◀── confirmed (after the rows are durable)
//
// Before the data of an insert is sent, PostgreSQL holds its intent: the range of rows,
// the deduplication token, and what else decides the block's bytes. A session begins with
// taking the slot, claiming the intent, writing it once more if it may be unfinished, and
// going on behind it. Every reconnect is such a beginning, so there is one way to start
// and it is exercised all the time.
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
	"github.com/jackc/pgx/v5"

	"diehard/shared/clickhouse"
	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// Config of a Pipeline. All fields but Migrated, StartLSN and Reader are required.
type Config struct {
	PostgresURL string
	Origin      replication.Origin
	// Migrated reports whether PostgreSQL has the tables of this version; nil asks nothing.
	Migrated func(context.Context, *pgx.Conn) error
	// StartLSN skips every commit before it; 0 skips nothing. It must not lie before
	// what the slot has confirmed.
	StartLSN pglogrepl.LSN
	// SenderTimeout is after how long of silence the server drops our session,
	// and we its. A standby takes over from a frozen streamer after this time.
	SenderTimeout time.Duration

	Tables sink.Tables
	// Reader is as in sink.Sink.ReadThrough; nil is the connection of New.
	Reader driver.Conn
	Limits batch.Limits
	// FlushInterval is the longest time a row waits for others, except in a backlog, and
	// the shortest between the starts of two inserts that are not full.
	FlushInterval time.Duration
	// InsertTimeout bounds one try at an insert, and one at connecting.
	InsertTimeout time.Duration
	// DrainTimeout bounds what happens after Run's context has ended.
	DrainTimeout time.Duration
}

// Pipeline is one streamer. Run may be called again after it has returned.
type Pipeline struct {
	cfg      Config
	ch       clickhouse.Conn
	log      *slog.Logger
	observer Observer
	progress Progress
	systemID string // of the first server that was reached
	// newTimeline is since when this process knows the timeline that it is on.
	newTimeline struct {
		timeline uint32
		since    time.Time
		other    bool // it knows one from before, too
	}
	size batchSize
	// silences is how many sessions in a row PostgreSQL's silence has ended; the receiver's.
	silences int
	warned   map[string]bool // what was logged of replication.Warning
	// startChecked: StartLSN was found to be possible.
	startChecked bool
}

// New returns a Pipeline that writes through ch. observer may be nil.
func New(cfg Config, ch clickhouse.Conn, log *slog.Logger, observer Observer) *Pipeline {
	if observer == nil {
		observer = NoopObserver{}
	}
	return &Pipeline{cfg: cfg, ch: ch, log: log, observer: observer, warned: map[string]bool{}}
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
// has ended means that the last rows could not be written: they come again at
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

func (p *Pipeline) session(ctx context.Context) error {
	s, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return s.stream(ctx)
}
