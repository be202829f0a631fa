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
	// How often the databases are asked while nobody else asks.
	postgresEvery   = time.Second
	clickhouseEvery = 5 * time.Second
	outboxEvery     = 15 * time.Second
	// freshEnough is the age up to which an answer serves a request.
	freshEnough = 200 * time.Millisecond
	// patience is how long a request waits for a database that is slow to answer.
	patience = 500 * time.Millisecond
)

// end is what is known of one database.
type end[T any] struct {
	last    *T        // the last answer, nil before the first
	at      time.Time // when it was given
	failure error     // why there was none last time, nil if there was
	since   time.Time // since when there is none
}

func (e *end[T]) note(answer *T, err error) {
	now := time.Now()
	if err == nil {
		*e = end[T]{last: answer, at: now}
		return
	}
	if e.failure == nil {
		e.since = now
	}
	e.failure = err
}

// sample is how both ends and the pipeline between them stood at one moment.
type sample struct {
	at         time.Time // our clock
	skew       time.Duration
	postgres   end[Postgres]
	clickhouse end[ClickHouse]
	outbox     end[Outbox]
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
	sample  sample
	tips    timeline // end of the WAL
	commits timeline // rows that landed
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
	s.sample.at = time.Now()
	s.sample.postgres.note(answer, err)
	s.sample.state = s.progress.State()
	if err != nil {
		return
	}
	s.sample.skew = answer.Skew()
	s.tips.add(answer.walEnd, answer.now)
	s.sample.lag = s.measure(answer)
	if slot := answer.Slot(s.probe.Slot); slot != nil {
		s.growth.add(answer.now, slot.RetainedBytes)
		s.sample.rate = s.growth.rate(slot.Active)
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
		source = sink.Source{SystemID: p.SystemID, Slot: s.probe.Slot}.String()
	}
	answer, err := s.probe.AskClickHouse(ctx, source)
	if ctx.Err() != nil {
		return // we ended it ourselves
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sample.clickhouse.note(answer, err)
}

func (s *sampler) askOutbox(ctx context.Context) {
	answer, err := s.probe.AskOutbox(ctx)
	if ctx.Err() != nil {
		return // we ended it ourselves
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sample.outbox.note(answer, err)
}

// fresh returns a sample that is young enough for a request. A database that
// does not answer is not waited for: then it is the last one.
func (s *sampler) fresh(ctx context.Context) sample {
	ctx, cancel := context.WithTimeout(ctx, patience)
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

// get returns the last sample. What its pointers lead to does not change.
func (s *sampler) get() sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sample
}

// landed notes the commit time of the last row of a batch that landed.
func (s *sampler) landed(lsn pglogrepl.LSN, committed time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commits.add(lsn, committed)
}

// now is the time by PostgreSQL's clock, to within half a round trip.
func (s *sampler) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.sample.skew)
}

// measure compares the pipeline's positions with the end of the WAL. Positions
// of a pipeline that does not stream are those of the databases.
func (s *sampler) measure(p *Postgres) Lag {
	at := positions{}
	if slot := p.Slot(s.probe.Slot); slot != nil {
		at.confirmed, at.retained = slot.confirmed, slot.restart
	}
	if c := s.sample.clickhouse.last; c != nil {
		at.flushed = c.landed
	}
	switch s.sample.state {
	case pipeline.Streaming, pipeline.Retrying:
		at.received, at.decoded = s.progress.Received(), s.progress.Decoded()
		at.flushed = max(at.flushed, s.progress.Flushed())
		at.confirmed = max(at.confirmed, s.progress.Confirmed())
		at.rows, at.bytes = s.progress.Buffered()
	case pipeline.Connecting, pipeline.Standby, pipeline.Stopped:
	}
	return at.lag(p.walEnd, func(lsn pglogrepl.LSN) age { return s.age(lsn, p.now) })
}

// age is how long ago the WAL grew beyond lsn. Before the first look at the end
// of the WAL, what is known of the past are the commits that have landed.
func (s *sampler) age(lsn pglogrepl.LSN, now time.Time) age {
	if at, ok := s.tips.reached(lsn); ok {
		return age{Duration: max(0, now.Sub(at))}
	}
	if at, ok := s.commits.reached(lsn); ok {
		return age{Duration: max(0, now.Sub(at))}
	}
	return age{Duration: max(0, now.Sub(s.tips.marks[0].at)), atLeast: true}
}
