package ops

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/pipeline"
	"diehard/streamer/sink"
)

const (
	// How often the databases are asked without a request.
	postgresEvery   = time.Second
	clickhouseEvery = 5 * time.Second
	outboxEvery     = 15 * time.Second
	// freshEnough is the age up to which an answer serves a request.
	freshEnough = 200 * time.Millisecond
	// answerTimeout is how long a request waits for a database that is slow to answer.
	answerTimeout = 500 * time.Millisecond
)

// endpoint is what is known of one database.
type endpoint[T any] struct {
	last    *T        // the last answer, nil before the first
	at      time.Time // when it was given
	failure error     // why there was none last time, nil if there was
	since   time.Time // since when there is none
}

func (e *endpoint[T]) note(answer *T, err error) {
	now := time.Now()
	if err == nil {
		*e = endpoint[T]{last: answer, at: now}
		return
	}
	if e.failure == nil {
		e.since = now
	}
	e.failure = err
}

// snapshot is how both ends and the pipeline between them stood at one moment.
type snapshot struct {
	at         time.Time // our clock
	skew       time.Duration
	postgres   endpoint[Postgres]
	clickhouse endpoint[ClickHouse]
	outbox     endpoint[Outbox]
	state      pipeline.State
	lag        Lag
	rate       rate
}

// sampler asks the databases again and again, and keeps what is needed to turn
// positions into times and rates. Safe for concurrent use.
type sampler struct {
	probe    *Probe
	progress *pipeline.Progress

	// Held by who asks.
	askingPostgres   sync.Mutex
	askingClickHouse sync.Mutex

	mu      sync.Mutex
	last    snapshot
	walEnds timeline // end of the WAL
	commits timeline // rows that were written
	growth  growth
}

// run asks until ctx ends.
func (s *sampler) run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { every(ctx, postgresEvery, func() { s.askPostgres(ctx, 0) }) })
	group.Go(func() { every(ctx, clickhouseEvery, func() { s.askClickHouse(ctx, 0) }) })
	group.Go(func() { every(ctx, outboxEvery, func() { s.askOutbox(ctx) }) })
	group.Wait()
}

// every calls do at once and then in turn until ctx ends.
func every(ctx context.Context, d time.Duration, do func()) {
	ticker := time.NewTicker(d)
	defer ticker.Stop()
	for {
		do()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// askPostgres asks PostgreSQL, unless it was asked less than age ago.
func (s *sampler) askPostgres(ctx context.Context, age time.Duration) {
	s.askingPostgres.Lock()
	defer s.askingPostgres.Unlock()
	if age > 0 && time.Since(s.get().at) < age {
		return
	}
	answer, err := s.probe.AskPostgres(ctx)
	if ctx.Err() != nil {
		return // we ended it ourselves
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last.at = time.Now()
	s.last.postgres.note(answer, err)
	s.last.state = s.progress.State()
	if err != nil {
		return
	}
	s.last.skew = answer.Skew()
	s.walEnds.add(answer.walEnd, answer.now)
	s.last.lag = s.measure(answer)
	if slot := answer.Slot(s.probe.Origin.SlotName()); slot != nil {
		s.growth.add(answer.now, slot.RetainedBytes)
		s.last.rate = s.growth.rate(slot.Active)
	}
}

// askClickHouse asks ClickHouse, unless its last answer is younger than age.
func (s *sampler) askClickHouse(ctx context.Context, age time.Duration) {
	s.askingClickHouse.Lock()
	defer s.askingClickHouse.Unlock()
	if last := s.get().clickhouse; age > 0 && (last.failure != nil || time.Since(last.at) < age) {
		return
	}
	source := ""
	if p := s.get().postgres.last; p != nil {
		source = sink.Source{SystemID: p.SystemID, Slot: s.probe.Origin.SlotName()}.String()
	}
	answer, err := s.probe.AskClickHouse(ctx, source)
	if ctx.Err() != nil {
		return // we ended it ourselves
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last.clickhouse.note(answer, err)
}

func (s *sampler) askOutbox(ctx context.Context) {
	answer, err := s.probe.AskOutbox(ctx)
	if ctx.Err() != nil {
		return // we ended it ourselves
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last.outbox.note(answer, err)
}

// fresh returns a snapshot that is young enough for a request. A database that
// does not answer is not waited for: then it is the last one.
func (s *sampler) fresh(ctx context.Context) snapshot {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var asks sync.WaitGroup
	if s.get().postgres.failure == nil {
		asks.Go(func() { s.askPostgres(ctx, freshEnough) })
	}
	if s.get().clickhouse.failure == nil {
		asks.Go(func() { s.askClickHouse(ctx, freshEnough) })
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		asks.Wait()
	}()
	select {
	case <-answered:
	case <-ctx.Done():
	}
	return s.get()
}

// get returns the last snapshot. What it points to does not change.
func (s *sampler) get() snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// committed notes the commit time of the last row of a batch that was written.
func (s *sampler) committed(lsn pglogrepl.LSN, committed time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commits.add(lsn, committed)
}

// now is the time by PostgreSQL's clock, to within half a round trip.
func (s *sampler) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.last.skew)
}

// measure compares the pipeline's positions with the end of the WAL. Positions
// of a pipeline that does not stream are those of the databases.
func (s *sampler) measure(p *Postgres) Lag {
	at := positions{}
	if slot := p.Slot(s.probe.Origin.SlotName()); slot != nil {
		at.confirmed, at.retained = slot.ConfirmedFlush, slot.RestartLSN
	}
	if c := s.last.clickhouse.last; c != nil {
		at.flushed = c.lastLSN
	}
	switch s.last.state {
	case pipeline.Streaming, pipeline.Retrying:
		at.received, at.decoded = s.progress.Received(), s.progress.Decoded()
		at.flushed = max(at.flushed, s.progress.Flushed())
		at.confirmed = max(at.confirmed, s.progress.Durable())
		at.rows, at.bytes = s.progress.Buffered()
	case pipeline.Connecting, pipeline.Standby, pipeline.Stopped:
	}
	return at.lag(p.walEnd, func(lsn pglogrepl.LSN) age { return s.age(lsn, p.now) })
}

// age is how long ago the WAL grew beyond lsn. Before the first look at the end
// of the WAL, only the commits that were written are known.
func (s *sampler) age(lsn pglogrepl.LSN, now time.Time) age {
	if at, ok := s.walEnds.reached(lsn); ok {
		return age{Duration: max(0, now.Sub(at))}
	}
	if at, ok := s.commits.reached(lsn); ok {
		return age{Duration: max(0, now.Sub(at))}
	}
	return age{Duration: max(0, now.Sub(s.walEnds.marks[0].at)), atLeast: true}
}
