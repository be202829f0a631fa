package httpapi

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"

	"github.com/labstack/echo/v4"

	"diehard/api/events"
	"diehard/api/idempotency"
)

const (
	maxEventsBytes = 2 << 20   // of JSON, which is held in memory
	maxStreamBytes = 256 << 20 // of NDJSON, which is streamed
	maxLineBytes   = 2 << 20
)

// eventsBody is the body of a request with events.
type eventsBody struct {
	events.Source
	digest func() idempotency.Digest // of the kind of body, and of the body read so far
	single bool                      // one event by itself, not in an array
}

// openEvents returns the source of a body's events. NDJSON is hashed while it is read
// if the request has an idempotency key. Errors are problems: 400.
func openEvents(c echo.Context, t Timeouts, hashed bool) (*eventsBody, error) {
	if isStream(c) {
		return openNDJSON(c, t, hashed), nil
	}
	return openJSON(bodyOf(c))
}

func openJSON(body []byte) (*eventsBody, error) {
	text, err := jsonText(body)
	if err != nil {
		return nil, err
	}
	b := &eventsBody{digest: func() idempotency.Digest { return digestOf("json", body) }}
	switch text[0] {
	case '[':
		b.Source = &jsonEvents{rest: text[1:]}
	case '{':
		b.Source, b.single = &jsonEvents{rest: text}, true
	default:
		return nil, &Problem{Status: http.StatusBadRequest, Detail: "The body is neither a JSON object nor an array."}
	}
	return b, nil
}

// digestOf is the SHA-256 of a request: its kind keeps equal bodies of different
// kinds apart.
func digestOf(kind string, body []byte) (digest idempotency.Digest) {
	h := newDigest(kind)
	_, _ = h.Write(body) // a hash never fails
	h.Sum(digest[:0])
	return digest
}

func newDigest(kind string) hash.Hash {
	h := sha256.New()
	_, _ = io.WriteString(h, kind+"\n")
	return h
}

// jsonEvents is the source of a JSON body: one event, or the inside of an array.
// Events are parsed one by one, so an array costs no more than the part that is read.
type jsonEvents struct{ rest []byte }

// Next implements [events.Source].
func (v *jsonEvents) Next() (n events.NewEvent, err error) {
	var value []byte
	if value, v.rest = cutValue(v.rest); len(value) == 0 {
		return n, io.EOF
	}
	return readEvent(value), nil
}

// ndjsonEvents is the source of an NDJSON body: one event per line, while it arrives.
type ndjsonEvents struct {
	reader *bufio.Reader
	line   []byte // the current line so far
	number int
}

func openNDJSON(c echo.Context, t Timeouts, hashed bool) *eventsBody {
	end, _ := c.Request().Context().Deadline()
	var body io.Reader = &pacedBody{
		body:    http.MaxBytesReader(c.Response(), c.Request().Body, maxStreamBytes),
		control: http.NewResponseController(c.Response()), timeout: t.Body, rate: t.BodyRate, end: end,
	}
	b := &eventsBody{}
	if hashed {
		h := newDigest("ndjson")
		body = io.TeeReader(body, h)
		b.digest = func() (digest idempotency.Digest) {
			h.Sum(digest[:0])
			return digest
		}
	}
	b.Source = &ndjsonEvents{reader: bufio.NewReaderSize(body, 64<<10)}
	return b
}

// Next implements [events.Source]. Empty lines are skipped.
func (l *ndjsonEvents) Next() (events.NewEvent, error) {
	for {
		line, err := l.next()
		if err != nil {
			return events.NewEvent{}, err
		}
		if len(bytes.TrimSpace(line)) > 0 {
			return l.event(line)
		}
	}
}

// next returns the next line, or io.EOF.
func (l *ndjsonEvents) next() ([]byte, error) {
	l.line = l.line[:0]
	l.number++
	for {
		piece, err := l.reader.ReadSlice('\n')
		l.line = append(l.line, piece...)
		switch {
		case len(l.line) > maxLineBytes:
			return nil, l.problem(http.StatusRequestEntityTooLarge, fmt.Sprintf("has more than %d bytes", maxLineBytes))
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(l.line) > 0:
			return l.line, nil
		case errors.Is(err, io.EOF):
			return nil, io.EOF
		case err != nil:
			return nil, readProblem(err)
		default:
			return l.line, nil
		}
	}
}

func (l *ndjsonEvents) event(line []byte) (events.NewEvent, error) {
	if at := invalidUTF8(line); at >= 0 {
		return events.NewEvent{}, l.problem(http.StatusBadRequest, fmt.Sprintf("is not UTF-8 (at byte %d)", at+1))
	}
	if !json.Valid(line) {
		return events.NewEvent{}, l.problem(http.StatusBadRequest, fmt.Sprintf("is not valid JSON (at byte %d)", invalidJSON(line)))
	}
	return readEvent(bytes.Clone(line)), nil // the line's buffer is reused
}

func (l *ndjsonEvents) problem(status int, what string) error {
	return &Problem{Status: status, Detail: fmt.Sprintf("Line %d %s.", l.number, what)}
}
