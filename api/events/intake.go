package events

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"diehard/shared/event"
)

const (
	// A chunk is sent in one statement, and is what a request keeps in memory.
	chunkEvents = 5000
	chunkBytes  = 1 << 20 // of contexts; the last one may go beyond

	maxFieldErrors = 20
)

// intake reads a source in chunks, checks the events and gives them ids.
type intake struct {
	source                   Source
	environment, traceparent string

	first uuid.UUID // ids that are not given count up from it
	chunk []event.Event
	ended bool // chunk is the last one

	ids   []uuid.UUID       // of all events so far
	given map[uuid.UUID]int // where the callers' own ids were
	wrong []FieldError
}

func newIntake(source Source, environment, traceparent string) (*intake, error) {
	first, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make event ids: %w", err)
	}
	return &intake{source: source, environment: environment, traceparent: traceparent, first: first}, nil
}

// read fetches the next chunk. Once an event is wrong the rest is read only to
// find more errors, and [*InvalidError] is returned.
func (in *intake) read() error {
	in.chunk = in.chunk[:0]
	for size := 0; len(in.wrong) > 0 || len(in.chunk) < chunkEvents && size < chunkBytes; {
		n, err := in.source.Next()
		if isEnd(err) {
			in.ended = true
			break
		}
		if err != nil {
			return err
		}
		if len(in.ids) == MaxEvents {
			return ErrTooMany
		}
		in.take(&n)
		size += len(n.Context)
		if len(in.wrong) >= maxFieldErrors {
			break
		}
	}
	if in.ended && len(in.ids) == 0 {
		in.wrong = append(in.wrong, FieldError{"events", "must not be empty"})
	}
	if len(in.wrong) > 0 {
		return &InvalidError{in.wrong}
	}
	return nil
}

// take adds n to the chunk, or its errors to those there are.
func (in *intake) take(n *NewEvent) {
	place := len(in.ids)
	problems := n.problems()
	if n.ID == uuid.Nil {
		n.ID = numbered(in.first, place)
		in.ids = append(in.ids, n.ID)
	} else {
		in.ids = append(in.ids, n.ID)
		if before, ok := in.given[n.ID]; ok {
			problems = append(problems, FieldError{"id", fmt.Sprintf("is also the id of events[%d]", before)})
		}
		if in.given == nil {
			in.given = map[uuid.UUID]int{}
		}
		in.given[n.ID] = place
	}
	for _, p := range problems[:min(len(problems), maxFieldErrors-len(in.wrong))] {
		field := strings.TrimSuffix(fmt.Sprintf("events[%d].%s", place, p.Field), ".") // the event itself
		in.wrong = append(in.wrong, FieldError{field, p.Message})
	}
	if len(in.wrong) > 0 {
		clear(in.chunk) // nothing is sent any more
		in.chunk = in.chunk[:0]
		return
	}
	in.chunk = append(in.chunk, n.event(in.environment, in.traceparent))
}

// renumber makes the ids those of an earlier request with the same events.
func (in *intake) renumber(first uuid.UUID) {
	for i, id := range in.ids {
		if id == numbered(in.first, i) {
			in.ids[i] = numbered(first, i)
		}
	}
	in.first = first
}

// numbered returns the id n places behind first: the random bits of a version 7
// UUID are a counter that starts anywhere, so the ids of a request are in order.
//
// Source: RFC 9562, "Monotonicity and Counters", method 2.
func numbered(first uuid.UUID, n int) uuid.UUID {
	const variantBits, randomBits = 0b10 << 62, 1<<62 - 1
	id := first
	random := binary.BigEndian.Uint64(first[8:]) & randomBits
	binary.BigEndian.PutUint64(id[8:], variantBits|(random+uint64(n))&randomBits) //nolint:gosec // n counts events
	return id
}
