package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/batch"
	"diehard/streamer/failpoint"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// session is one connection from its opening to its end.
type session struct {
	p        *Pipeline
	cfg      Config
	log      *slog.Logger
	observer Observer
	progress *Progress

	name      string // application name: unique, proves that the slot is ours
	nonce     string // as in name
	control   *replication.Control
	conn      *replication.Conn
	sink      *sink.Sink
	source    sink.Source
	history   replication.History
	slot      replication.Slot
	record    replication.IntentRecord // as claimed, then as last written
	startedAt pglogrepl.LSN            // where the stream was asked to begin; 0: at the confirmed position
	claimedAt time.Time
	skips     bool // by --start-lsn, what may have to be replayed
	// predecessorTimeout is the time limit of inserts that the claimed record names.
	predecessorTimeout time.Duration
}

func newSession(p *Pipeline) *session {
	name, nonce := replication.NewApplicationName()
	return &session{
		p: p, cfg: p.cfg, log: p.log, observer: p.observer, progress: &p.progress,
		name: name, nonce: nonce,
	}
}

func (s *session) owner() replication.Owner {
	return replication.Owner{PID: s.conn.PID(), Application: s.name}
}

func (s *session) close() {
	if s.conn != nil {
		s.conn.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.control.Close(ctx)
}

// confirmed is what may be acknowledged: the one number that flows back.
type confirmed struct {
	lsn atomic.Uint64
	// ask makes the next status update request an answer, to see whether the server lives.
	ask  atomic.Bool
	kick chan struct{}
	// final is closed when the position has been raised for the last time.
	final chan struct{}
}

// raise moves the position forward, never back, and has it sent at once.
func (c *confirmed) raise(lsn uint64) {
	if lsn > c.lsn.Load() { // the writer alone stores
		c.lsn.Store(lsn)
	}
	c.signal()
}

func (c *confirmed) signal() {
	select {
	case c.kick <- struct{}{}:
	default: // one is on its way
	}
}

// stream runs the three parts until ctx ends or one of them fails. When ctx
// ends, the receiver stops and the writer writes what it was given.
func (s *session) stream(ctx context.Context) error {
	work, fail := context.WithCancelCause(context.WithoutCancel(ctx))
	defer fail(nil)
	defer context.AfterFunc(work, s.conn.Close)() // a failure ends a blocked read
	reading, stopReading := context.WithCancel(work)
	defer stopReading()
	defer context.AfterFunc(ctx, func() {
		stopReading()
		s.conn.Wake()
		time.AfterFunc(s.cfg.DrainTimeout, func() { fail(errDrain) })
	})()

	var parts sync.WaitGroup
	run := func(part func() error) {
		parts.Go(func() {
			if err := part(); err != nil {
				fail(err)
			}
		})
	}
	c := &confirmed{kick: make(chan struct{}, 1), final: make(chan struct{})}
	c.lsn.Store(uint64(s.slot.ConfirmedFlush))
	run(func() error { return s.sendStatus(work, c) })
	run(func() error { return s.move(reading, work, c, run) })
	parts.Wait()
	if err := context.Cause(work); err != nil {
		return err
	}
	failpoint.Hit("drained")
	if err := s.conn.Finish(time.Now().Add(finishTimeout)); err != nil {
		s.log.Debug("the server did not end the stream gracefully", "error", err)
	}
	return nil
}

// finishTimeout is how long the server may take to end the stream gracefully.
const finishTimeout = 2 * time.Second

var errDrain = errors.New("the last rows were not written within SHUTDOWN_TIMEOUT; they come again at the next start")

// move starts receiver and writer. The status sender runs before them, because
// waiting for ClickHouse may take longer than the server's wal_sender_timeout.
func (s *session) move(reading, work context.Context, c *confirmed, run func(func() error)) error {
	begin, err := s.resume(reading)
	if err != nil {
		close(c.final)
		return s.whyEnded(err)
	}
	ready, free, waiting := make(chan *batch.Batch, 1), make(chan *batch.Batch, 1), new(atomic.Int32)
	free <- batch.New(s.cfg.Limits)
	s.progress.begin(s.name, s.slot.ConfirmedFlush)
	r := &receiver{
		s: s, decoder: begin.decoder, confirmed: c, ready: ready, free: free, waiting: waiting,
		completeLSN: s.slot.ConfirmedFlush, repeat: begin.repeat,
	}
	r.rows, r.received = s.progress.Read()
	w := newWriter(s, c, ready, free, waiting, begin)
	s.progress.setState(Streaming)
	run(func() error {
		defer close(ready)
		return r.run(reading, work)
	})
	run(func() error {
		defer close(c.final)
		return w.run(work)
	})
	return nil
}

// ErrStreamEnded means that PostgreSQL ended the stream before anything of it was read.
var ErrStreamEnded = errors.New("PostgreSQL has ended the stream")

// whyEnded finds out why a session lost the slot that it had a moment ago: the server
// begins to send at once, and may have failed by the time the record is claimed.
func (s *session) whyEnded(err error) error {
	if !errors.Is(err, replication.ErrFenced) || s.conn == nil {
		return err
	}
	commit, cause := s.conn.End(time.Now().Add(finishTimeout))
	if errors.Is(cause, os.ErrDeadlineExceeded) {
		return err
	}
	if commit != 0 {
		s.progress.received.Store(uint64(commit))
	}
	return fmt.Errorf("%w: %w", ErrStreamEnded, cause)
}

// sendStatus reports the confirmed position on a fixed cadence and after every
// flush, whatever receiver and writer are doing: silence would cost us the slot.
func (s *session) sendStatus(ctx context.Context, c *confirmed) error {
	tick := time.NewTicker(min(time.Second, s.cfg.SenderTimeout/4))
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-c.kick:
		case <-c.final:
			last = true
		}
		lsn := pglogrepl.LSN(c.lsn.Load())
		if err := s.conn.Confirm(lsn, c.ask.Swap(false), s.cfg.SenderTimeout); err != nil {
			return err
		}
		s.progress.confirmed.Store(uint64(lsn))
	}
	return nil
}
