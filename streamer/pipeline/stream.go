package pipeline

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/batch"
	"diehard/streamer/failpoint"
)

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
// ends, the receiver stops and the writer lands what it was given.
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
		s.log.Debug("the server did not end the stream in order", "error", err)
	}
	return nil
}

// finishTimeout is how long the server may take to end the stream in order.
const finishTimeout = 2 * time.Second

var errDrain = errors.New("ClickHouse did not take the last rows within SHUTDOWN_TIMEOUT; they come again at the next start")

// move starts receiver and writer. The status sender runs before them, because
// waiting for a predecessor's inserts may take longer than the server's patience.
func (s *session) move(reading, work context.Context, c *confirmed, run func(func() error)) error {
	decoder, dead, err := s.resume(reading)
	if err != nil {
		close(c.final)
		return err
	}
	ready, free, waiting := make(chan *batch.Batch, 1), make(chan *batch.Batch, 1), new(atomic.Bool)
	free <- batch.New(s.cfg.Limits)
	s.progress.begin(s.name, s.slot.ConfirmedFlush)
	r := &receiver{session: s, decoder: decoder, confirmed: c, ready: ready, free: free, waiting: waiting, whole: s.slot.ConfirmedFlush}
	r.rows, r.received = s.progress.Read()
	w := &writer{session: s, confirmed: c, ready: ready, free: free, waiting: waiting, dead: dead}
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
