package decode

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Event is one outbox row. Byte slices point into the message it was decoded
// from and share its lifetime.
type Event struct {
	ID              [16]byte
	Type            []byte
	DateTime        int64 // microseconds since 1970
	Environment     []byte
	Context         []byte
	MetadataVersion uint64
	Trace           []byte   // W3C traceparent, may be empty
	TraceID         [16]byte // of Trace, zero without one
	PublishedBy     []byte
}

// withDefaults is what NULL in a column stands for where it is allowed, and what a message may leave out.
var withDefaults = Event{MetadataVersion: 1}

// Formats of a column in a tuple (PostgreSQL docs, "Logical Replication Message Formats", TupleData).
const (
	formatNull      = 'n'
	formatUnchanged = 'u'
	formatText      = 't'
	formatBinary    = 'b'
)

// pgEpoch is 2000-01-01 in microseconds since 1970, the zero of PostgreSQL timestamps.
const pgEpoch = 946_684_800_000_000

// The range of a ClickHouse DateTime64(6), as microseconds since 1970 (1900-01-01 to 2299-12-31).
var (
	minDateTime = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	maxDateTime = time.Date(2299, 12, 31, 23, 59, 59, 999_999_000, time.UTC).UnixMicro()
)

var (
	errNull     = errors.New("is NULL")
	errLength   = errors.New("has the wrong length")
	errNegative = errors.New("is negative")
	errInfinite = errors.New("is infinite")
	errRange    = errors.New("is outside 1900-01-01 to 2299-12-31")
	errEmpty    = errors.New("is empty")
	errVersion  = errors.New("has an unknown jsonb version")
	errUUID     = errors.New("is not a UUID")
	errInteger  = errors.New("is not a 64-bit integer")

	errTimestamp = errors.New("is not an ISO timestamp")
)

// setter stores one column's value in e. v is never retained.
type setter func(e *Event, format byte, v []byte) error

func setID(e *Event, format byte, v []byte) error {
	if format == formatBinary {
		if len(v) != len(e.ID) {
			return errLength
		}
		copy(e.ID[:], v)
		return nil
	}
	id, err := uuid.ParseBytes(v)
	if err != nil {
		return errUUID // the cause would quote the value
	}
	e.ID = id
	return nil
}

func setType(e *Event, _ byte, v []byte) error {
	if len(v) == 0 {
		return errEmpty
	}
	e.Type = v
	return nil
}

func setEnvironment(e *Event, _ byte, v []byte) error {
	e.Environment = v
	return nil
}

func setContext(e *Event, _ byte, v []byte) error {
	e.Context = v
	return nil
}

// setContextJSONB strips the version byte that jsonb_send puts before the text.
func setContextJSONB(e *Event, format byte, v []byte) error {
	if format == formatBinary {
		if len(v) == 0 || v[0] != 1 {
			return errVersion
		}
		v = v[1:]
	}
	e.Context = v
	return nil
}

func setTrace(e *Event, _ byte, v []byte) error {
	e.Trace, e.TraceID = v, traceID(v)
	return nil
}

// traceparentLen is that of version 00: version, trace id, parent id and flags in hexadecimal, with dashes between.
// Source: W3C Recommendation, "Trace Context", traceparent Header.
const traceparentLen = 55

// traceID is that of a traceparent; zero if v is none. A trace is never a reason to refuse a row.
func traceID(v []byte) (id [16]byte) {
	if len(v) != traceparentLen || v[2] != '-' || v[35] != '-' {
		return id
	}
	if _, err := hex.Decode(id[:], v[3:35]); err != nil {
		return [16]byte{}
	}
	return id
}

func setPublishedBy(e *Event, _ byte, v []byte) error {
	e.PublishedBy = v
	return nil
}

func setDateTime(e *Event, format byte, v []byte) error {
	t, err := parseTimestamp(format, v)
	if err != nil {
		return err
	}
	if t < minDateTime || t > maxDateTime {
		return errRange
	}
	e.DateTime = t
	return nil
}

func setMetadataVersion(e *Event, format byte, v []byte) error {
	n, err := parseInt(format, v)
	if err != nil {
		return err
	}
	if n < 0 {
		return errNegative
	}
	e.MetadataVersion = uint64(n)
	return nil
}

func parseInt(format byte, v []byte) (int64, error) {
	if format == formatText {
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return 0, errInteger // the cause would quote the value
		}
		return n, nil
	}
	switch len(v) {
	case 8:
		return int64(binary.BigEndian.Uint64(v)), nil //nolint:gosec // two's complement on the wire
	case 4:
		return int64(int32(binary.BigEndian.Uint32(v))), nil //nolint:gosec // two's complement on the wire
	default:
		return 0, errLength
	}
}

// parseTimestamp returns microseconds since 1970. Text must be in DateStyle ISO.
func parseTimestamp(format byte, v []byte) (int64, error) {
	if format == formatText {
		return parseTimestampText(string(v))
	}
	if len(v) != 8 {
		return 0, errLength
	}
	t := int64(binary.BigEndian.Uint64(v)) //nolint:gosec // two's complement on the wire
	if t == math.MaxInt64 || t == math.MinInt64 {
		return 0, errInfinite
	}
	if t > math.MaxInt64-pgEpoch {
		return 0, errRange
	}
	return t + pgEpoch, nil
}

// timestampLayouts are the forms of timestamptz and timestamp in DateStyle ISO:
// the offset has hours, minutes and seconds only where needed.
var timestampLayouts = []string{
	"2006-01-02 15:04:05.999999-07",
	"2006-01-02 15:04:05.999999-07:00",
	"2006-01-02 15:04:05.999999-07:00:00",
	"2006-01-02 15:04:05.999999",
}

func parseTimestampText(v string) (int64, error) {
	if v == "infinity" || v == "-infinity" {
		return 0, errInfinite
	}
	for _, layout := range timestampLayouts {
		if t, err := time.Parse(layout, v); err == nil {
			return t.UnixMicro(), nil
		}
	}
	return 0, errTimestamp
}
