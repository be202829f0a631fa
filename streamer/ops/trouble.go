package ops

import (
	"errors"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/pipeline"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

const (
	// Failed is the state of a streamer that cannot run before an operator has acted.
	Failed = "failed"
	// Stuck is the state of a stream that fails at the same position again and again.
	Stuck = "stuck"
)

const (
	// stuckAfter is how many sessions must fail at one position.
	stuckAfter = 3
	// stuckFor is how long the last of them counts; longer than the longest pause between sessions.
	stuckFor = time.Minute
)

// trouble is what keeps the pipeline from working: a fatal error, or a position
// that it does not get past. Safe for concurrent use.
type trouble struct {
	mu sync.Mutex

	fatal error

	position pglogrepl.LSN // commit LSN of the last transaction that was read
	times    int           // sessions that failed there
	flushed  time.Time     // the last flush at the first of them
	last     time.Time
	cause    error
}

// failed notes a fatal error; nil: the pipeline works.
func (t *trouble) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fatal = err
}

// sessionEnded notes where a session that streamed has failed.
func (t *trouble) sessionEnded(p *pipeline.Progress, err error) {
	s := p.State()
	if began := s == pipeline.Streaming || s == pipeline.Retrying || errors.Is(err, pipeline.ErrStreamEnded); !began || p.Received() <= p.Durable() {
		return // it did not begin to stream, or had nothing to deliver
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if at, flushed := p.Received(), p.LastFlush(); at != t.position || !flushed.Equal(t.flushed) {
		t.position, t.flushed, t.times = at, flushed, 0
	}
	// A connection that is lost before the cause is read is known by its end alone.
	if t.times == 0 || !errors.Is(err, replication.ErrFenced) {
		t.cause = err
	}
	t.times++
	t.last = time.Now()
}

// report is what trouble there is.
type report struct {
	fatal    error
	stuck    error // nil unless the stream is stuck
	position pglogrepl.LSN
	times    int
}

func (t *trouble) report(durable pglogrepl.LSN) report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := report{fatal: t.fatal}
	if t.times >= stuckAfter && durable <= t.position && time.Since(t.last) < stuckFor {
		r.stuck, r.position, r.times = t.cause, t.position, t.times
	}
	return r
}

// state is the pipeline's, or the trouble that it has.
func (m *Monitor) state() (string, report) {
	s := m.progress.State()
	if s == pipeline.Streaming || s == pipeline.Standby {
		m.trouble.failed(nil)
	}
	r := m.trouble.report(m.progress.Durable())
	switch {
	case r.fatal != nil:
		return Failed, r
	case r.stuck != nil:
		return Stuck, r
	default:
		return s.String(), r
	}
}

// causeOf is the bounded word for a fatal error.
func causeOf(err error) failure.Cause {
	if cause, ok := failure.CauseOf(err); ok {
		return cause
	}
	switch proto.Error(sink.Code(err)) {
	case proto.ErrUnknownUser, proto.ErrWrongPassword, proto.ErrRequiredPassword, proto.ErrIPAddressNotAllowed, proto.ErrAuthenticationFailed:
		return failure.Credentials
	case proto.ErrAccessDenied, proto.ErrReadonly:
		return failure.Privileges
	case proto.ErrNoSuchColumnInTable, proto.ErrNumberOfColumnsDoesntMatch, proto.ErrTypeMismatch, proto.ErrUnknownTable,
		proto.ErrUnknownDatabase, proto.ErrTableIsDropped:
		return failure.Schema
	default:
		return failure.Other
	}
}
