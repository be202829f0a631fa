package events

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/event"
)

const (
	// A chunk is inserted by one statement and bounds the memory of a request.
	chunkEvents = 5000
	chunkBytes  = 1 << 20 // of contexts; the last event may exceed it

	maxFieldErrors = 20
)

// reader reads a source in chunks, validates the events and assigns ids.
type reader struct {
	source                   Source
	environment, traceparent string

	first uuid.UUID // generated ids count up from it
	chunk []event.Event
	ended bool // chunk is the last one

	ids   []uuid.UUID       // of all events so far
	given map[uuid.UUID]int // positions of the caller's own ids
	// keyBytes are the last bytes of generated ids, by position, of events with a key.
	keyBytes map[int]byte
	wrong    []FieldError
}

func newReader(source Source, environment, traceparent string) (*reader, error) {
	first, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make event ids: %w", err)
	}
	return &reader{source: source, environment: environment, traceparent: traceparent, first: first}, nil
}

// read fills the next chunk. After an invalid event it only looks for more errors
// and returns [*InvalidError].
func (in *reader) read() error {
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
		in.add(&n)
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

// add appends n to the chunk, or its problems to in.wrong.
func (in *reader) add(n *NewEvent) {
	position := len(in.ids)
	problems := n.problems()
	if n.ID == uuid.Nil {
		if n.Key != "" {
			if in.keyBytes == nil {
				in.keyBytes = map[int]byte{}
			}
			in.keyBytes[position] = event.KeyByte(n.Key)
		}
		n.ID = in.idAt(in.first, position)
		in.ids = append(in.ids, n.ID)
	} else {
		in.ids = append(in.ids, n.ID)
		if before, ok := in.given[n.ID]; ok {
			problems = append(problems, FieldError{"id", fmt.Sprintf("is also the id of events[%d]", before)})
		}
		if in.given == nil {
			in.given = map[uuid.UUID]int{}
		}
		in.given[n.ID] = position
	}
	for _, p := range problems[:min(len(problems), maxFieldErrors-len(in.wrong))] {
		field := strings.TrimSuffix(fmt.Sprintf("events[%d].%s", position, p.Field), ".") // an empty field is the event itself
		in.wrong = append(in.wrong, FieldError{field, p.Message})
	}
	if len(in.wrong) > 0 {
		clear(in.chunk) // nothing will be inserted
		in.chunk = in.chunk[:0]
		return
	}
	in.chunk = append(in.chunk, n.event(in.environment, in.traceparent))
}

// refused names the events of the chunk because of which the outbox refused it: what a
// setting of the database decides is not known before.
func (in *reader) refused(err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pgErr.Code != pgerrcode.CheckViolation || pgErr.ColumnName != "event_context" {
		return err
	}
	before := len(in.ids) - len(in.chunk)
	for i := range in.chunk {
		if event.DoubleEncoded(in.chunk[i].Context) && len(in.wrong) < maxFieldErrors {
			field := fmt.Sprintf("events[%d].event_context", before+i)
			in.wrong = append(in.wrong, FieldError{field, "is JSON encoded twice: a string instead of an object or array"})
		}
	}
	if len(in.wrong) == 0 {
		return err
	}
	return &InvalidError{in.wrong}
}

// renumber replaces the generated ids by those of an earlier request with the same events.
func (in *reader) renumber(first uuid.UUID) {
	for i, id := range in.ids {
		if id == in.idAt(in.first, i) {
			in.ids[i] = in.idAt(first, i)
		}
	}
	in.first = first
}

// idAt returns the generated id of the event at a position: first and those after it,
// with the last byte that the event's key decides, if it has one.
func (in *reader) idAt(first uuid.UUID, position int) uuid.UUID {
	id := idAfter(first, position)
	if b, keyed := in.keyBytes[position]; keyed {
		id[len(id)-1] = b
	}
	return id
}

// idAfter returns the id n positions after first. The random bits of a version 7 UUID
// serve as a counter, so the ids of a request are in order. The last byte is no part of
// it: it says to which streamer of several an event goes.
//
// Source: RFC 9562, "Monotonicity and Counters", method 2.
func idAfter(first uuid.UUID, n int) uuid.UUID {
	const variantBits, randomBits, lastBits = 0b10 << 62, 1<<62 - 1, 8
	id := first
	random := binary.BigEndian.Uint64(first[8:]) & randomBits
	counter := (random>>lastBits + uint64(n)) << lastBits & randomBits //nolint:gosec // n counts events
	binary.BigEndian.PutUint64(id[8:], variantBits|counter)
	id[len(id)-1] = first[len(first)-1] + byte(n) //nolint:gosec // it spreads the events
	return id
}
