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
	"time"

	"github.com/labstack/echo/v4"

	"diehard/api/events"
)

const (
	mimeNDJSON = "application/x-ndjson"

	maxEventsBytes = 2 << 20   // of JSON, which is read as a whole
	maxStreamBytes = 256 << 20 // of NDJSON, which is not
	maxLineBytes   = 2 << 20
)

// eventsBody is the body of a request with events.
type eventsBody struct {
	events.Source
	digest hash.Hash
	single bool // one event by itself, not in an array
}

// sum is the SHA-256 of all that was read, and of how it was meant.
func (b *eventsBody) sum() (digest [sha256.Size]byte) {
	b.digest.Sum(digest[:0])
	return digest
}

// openEvents returns the events of a body as far as they can be known before it
// is read. Errors are problems: 415, 413 or 400.
func openEvents(c echo.Context, t Timeouts) (*eventsBody, error) {
	if err := refuseEncoding(c); err != nil {
		return nil, err
	}
	switch kind := mediaType(c.Request()); kind {
	case echo.MIMEApplicationJSON:
		return openJSON(c)
	case mimeNDJSON:
		return openNDJSON(c, t), nil
	default:
		return nil, &Problem{
			Status: http.StatusUnsupportedMediaType,
			Detail: "Send one event or an array as application/json, or an event a line as " + mimeNDJSON + ".",
		}
	}
}

func openJSON(c echo.Context) (*eventsBody, error) {
	body, err := readBody(c.Response(), c.Request(), maxEventsBytes)
	if err != nil {
		return nil, err
	}
	b := &eventsBody{digest: sha256.New()}
	_, _ = fmt.Fprintf(b.digest, "json\n%s", body) // a hash takes everything
	text, err := jsonText(body)
	if err != nil {
		return nil, err
	}
	switch text[0] {
	case '[':
		b.Source = &values{rest: text[1:]}
	case '{':
		b.Source, b.single = &values{rest: text}, true
	default:
		return nil, &Problem{Status: http.StatusBadRequest, Detail: "The body is neither a JSON object nor an array."}
	}
	return b, nil
}

// values is a source of events that are there already: one, or the inside of an
// array. Each is cut off when it is asked for, so that an array of very many costs
// no more than the part of it that is looked at.
type values struct{ rest []byte }

// Next implements [events.Source].
func (v *values) Next() (n events.NewEvent, err error) {
	var value []byte
	if value, v.rest = cutValue(v.rest); len(value) == 0 {
		return n, io.EOF
	}
	return readEvent(value), nil
}

// lines is a source of events that arrive, one a line.
type lines struct {
	reader *bufio.Reader
	line   []byte // what is read of the line so far
	number int
}

func openNDJSON(c echo.Context, t Timeouts) *eventsBody {
	b := &eventsBody{digest: sha256.New()}
	_, _ = io.WriteString(b.digest, "ndjson\n")
	body := &patientReader{
		body:    http.MaxBytesReader(c.Response(), c.Request().Body, maxStreamBytes),
		control: http.NewResponseController(c.Response()),
		silence: t.Body, end: time.Now().Add(t.Stream),
	}
	_ = body.control.SetWriteDeadline(body.end.Add(writeMargin)) // as in Read
	b.Source = &lines{reader: bufio.NewReaderSize(io.TeeReader(body, b.digest), 64<<10)}
	return b
}

// patientReader lets a body take its time, as long as it goes on.
type patientReader struct {
	body    io.Reader
	control *http.ResponseController
	silence time.Duration
	end     time.Time
}

// Read moves the deadline of the connection. After the last byte it is the end
// of the request: the server would take a passed deadline for a client that left.
func (r *patientReader) Read(p []byte) (int, error) {
	deadline := time.Now().Add(r.silence)
	if deadline.After(r.end) {
		deadline = r.end
	}
	_ = r.control.SetReadDeadline(deadline) // a response without a connection has none
	n, err := r.body.Read(p)
	if errors.Is(err, io.EOF) {
		_ = r.control.SetReadDeadline(r.end.Add(writeMargin))
	}
	return n, err
}

// Next implements [events.Source]. Empty lines are skipped.
func (l *lines) Next() (events.NewEvent, error) {
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

// next returns a line, io.EOF after the last one.
func (l *lines) next() ([]byte, error) {
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

func (l *lines) event(line []byte) (events.NewEvent, error) {
	if at := invalidUTF8(line); at >= 0 {
		return events.NewEvent{}, l.problem(http.StatusBadRequest, fmt.Sprintf("is not UTF-8 (at byte %d)", at+1))
	}
	if !json.Valid(line) {
		return events.NewEvent{}, l.problem(http.StatusBadRequest, fmt.Sprintf("is not valid JSON (at byte %d)", invalidJSON(line)))
	}
	return readEvent(bytes.Clone(line)), nil // the line's memory is used again
}

func (l *lines) problem(status int, what string) error {
	return &Problem{Status: status, Detail: fmt.Sprintf("Line %d %s.", l.number, what)}
}
