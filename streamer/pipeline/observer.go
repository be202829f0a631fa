package pipeline

import (
	"time"

	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// Flush describes a batch that is durable.
type Flush struct {
	Rows, Bytes, DeadLetters int
	First, Last              decode.Position
	Took                     time.Duration
	Retries                  int
}

// Observer learns what happens in a Pipeline. Its methods are called from the
// pipeline's own goroutines: they must not block, and must not keep the batch.
type Observer interface {
	// FlushStarted is called when the writer takes a batch with rows.
	FlushStarted(b *batch.Batch)
	// FlushEnded follows, with err only when the pipeline gives the batch up for this session.
	FlushEnded(b *batch.Batch, f Flush, err error)
	// Retry is called for every try that failed and will be repeated.
	Retry(class failure.Class, err error)
	// ViewFailed is called for an insert that goes on, or has gone on, without a materialized view.
	ViewFailed(err *sink.ViewError)
	// DeadLetter is called for every row written to the dead-letter table.
	DeadLetter(r decode.Reject)
	// EventsMissing is called for rows that the slot has delivered again after a failover, and that
	// are not in ClickHouse.
	EventsMissing(err *MissingError)
	// SessionEnded is called when a connection ended with an error and a new one is about to begin.
	SessionEnded(err error)
}

// NoopObserver does nothing. A type that embeds it implements the methods that it needs.
type NoopObserver struct{}

// FlushStarted implements Observer.
func (NoopObserver) FlushStarted(*batch.Batch) {}

// FlushEnded implements Observer.
func (NoopObserver) FlushEnded(*batch.Batch, Flush, error) {}

// Retry implements Observer.
func (NoopObserver) Retry(failure.Class, error) {}

// ViewFailed implements Observer.
func (NoopObserver) ViewFailed(*sink.ViewError) {}

// DeadLetter implements Observer.
func (NoopObserver) DeadLetter(decode.Reject) {}

// EventsMissing implements Observer.
func (NoopObserver) EventsMissing(*MissingError) {}

// SessionEnded implements Observer.
func (NoopObserver) SessionEnded(error) {}
