package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"unicode/utf8"

	"github.com/labstack/echo/v4"
)

const (
	maxBodyBytes = 64 << 10
	// freeBytes of each body do not count: the connection takes as much.
	freeBytes = 4 << 10

	bodyField        = "body" // of the echo context
	detailInvalid    = "Some fields are not valid."
	detailIncomplete = "The body could not be read to its end."
)

// receive reads a JSON body of at most limit bytes, for [bodyOf]; of NDJSON, if it is
// allowed, it only takes the place. Errors are problems: 415, 413, 408, 429 or 400.
func (a *admission) receive(limit int64, ndjsonAllowed bool) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if err := checkMediaType(c, ndjsonAllowed); err != nil {
				return err
			}
			if isStream(c) {
				return a.streamPlace(c, next)
			}
			body := &receivedBody{limit: limit, sharer: sharerOf(c), admission: a}
			defer body.release()
			if err := body.read(c); err != nil {
				return err
			}
			c.Set(bodyField, body.content)
			return next(c)
		}
	}
}

// bodyOf returns the body that the middleware received.
func bodyOf(c echo.Context) []byte {
	body, _ := c.Get(bodyField).([]byte)
	return body
}

// receivedBody is a body in memory, whose bytes are counted.
type receivedBody struct {
	content   []byte
	limit     int64
	sharer    string
	admission *admission
	held      int64
}

func (b *receivedBody) release() {
	if b.held > 0 {
		b.admission.bytes.Return(b.sharer, b.held)
	}
}

// read fills content with the whole body, which is UTF-8.
func (b *receivedBody) read(c echo.Context) error {
	request, t := c.Request(), b.admission.timeouts
	length := request.ContentLength
	if length > b.limit {
		return tooLarge(b.limit)
	}
	body := &pacedBody{
		body:    http.MaxBytesReader(c.Response(), request.Body, b.limit),
		control: http.NewResponseController(c.Response()), timeout: t.Body, rate: t.BodyRate,
	}
	b.content = make([]byte, 0, freeBytes)
	for {
		if len(b.content) == cap(b.content) {
			if err := b.grow(length); err != nil {
				return err
			}
		}
		n, err := body.Read(b.content[len(b.content):cap(b.content)])
		b.content = b.content[:len(b.content)+n]
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return readProblem(err)
		}
	}
	if at := invalidUTF8(b.content); at >= 0 {
		return &Problem{Status: http.StatusBadRequest, Detail: fmt.Sprintf("The body is not UTF-8 (at byte %d).", at+1)}
	}
	return nil
}

// grow makes room for the length that the client announced, or for twice as much as
// there is, and takes the bytes from the budget first.
func (b *receivedBody) grow(length int64) error {
	size := 2 * int64(cap(b.content))
	if length >= 0 {
		size = length
	}
	size = min(size, b.limit) + 1 // one more than fits, to see the end
	more := size - int64(cap(b.content))
	if b.admission.bytes.Take(b.sharer, more) != nil {
		return tooMany("Too many bytes of request bodies are in memory. Try again, send fewer or smaller bodies at a time, or NDJSON.")
	}
	b.held += more
	content := make([]byte, len(b.content), size)
	copy(content, b.content)
	b.content = content
	return nil
}

// readObject returns the body, a JSON object without leading space. Errors are
// problems: 400.
func readObject(c echo.Context) ([]byte, error) {
	text, err := jsonText(bodyOf(c))
	if err == nil && text[0] != '{' {
		err = &Problem{Status: http.StatusBadRequest, Detail: "The body is not a JSON object."}
	}
	return text, err
}

// readProblem returns the problem for a failed read of a body.
func readProblem(err error) error {
	if limit, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(limit.Limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &Problem{Status: http.StatusRequestTimeout, Detail: "The body arrived too slowly."}
	}
	return &Problem{Status: http.StatusBadRequest, Detail: detailIncomplete}
}

// invalidUTF8 returns the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(text []byte) int {
	if utf8.Valid(text) {
		return -1
	}
	for at := 0; ; {
		r, size := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && size <= 1 {
			return at
		}
		at += size
	}
}

func tooLarge(limit int64) error {
	return &Problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("The body may have at most %d bytes.", limit)}
}

// jsonText returns body without leading space if it is JSON. The problem does not
// quote the body.
func jsonText(body []byte) ([]byte, error) {
	if !json.Valid(body) {
		return nil, &Problem{Status: http.StatusBadRequest, Detail: fmt.Sprintf("The body is not valid JSON (at byte %d).", invalidJSON(body))}
	}
	return bytes.TrimLeft(body, jsonSpace), nil
}

// invalidJSON returns the position of the first byte that is not JSON, from 1.
func invalidJSON(text []byte) int64 {
	var raw json.RawMessage
	syntax, ok := errors.AsType[*json.SyntaxError](json.Unmarshal(text, &raw))
	if !ok {
		return int64(len(text))
	}
	return syntax.Offset
}
