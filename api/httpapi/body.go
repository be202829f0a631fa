package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/labstack/echo/v4"
)

const (
	maxBodyBytes    = 64 << 10
	headerEncoding  = "Content-Encoding"
	detailInvalid   = "Some fields are not valid."
	detailUnreached = "The body could not be read to its end."
)

// readObject returns the body, which is a JSON object that begins at once. Errors
// are problems: 415, 413 or 400.
func readObject(c echo.Context) ([]byte, error) {
	request := c.Request()
	if mediaType(request) != echo.MIMEApplicationJSON {
		return nil, &Problem{Status: http.StatusUnsupportedMediaType, Detail: "Send the body as application/json."}
	}
	if err := refuseEncoding(c); err != nil {
		return nil, err
	}
	body, err := readBody(c.Response(), request, maxBodyBytes)
	if err != nil {
		return nil, err
	}
	text, err := jsonText(body)
	if err == nil && text[0] != '{' {
		err = &Problem{Status: http.StatusBadRequest, Detail: "The body is not a JSON object."}
	}
	return text, err
}

// mediaType is the Content-Type without parameters, in lower case.
func mediaType(request *http.Request) string {
	name, _, _ := strings.Cut(request.Header.Get(echo.HeaderContentType), ";")
	return strings.ToLower(strings.TrimSpace(name))
}

// refuseEncoding refuses compressed bodies: their size is only known afterwards.
func refuseEncoding(c echo.Context) error {
	encoding := strings.TrimSpace(strings.Join(c.Request().Header.Values(headerEncoding), ","))
	if encoding == "" || strings.EqualFold(encoding, "identity") {
		return nil
	}
	c.Response().Header().Set(echo.HeaderAcceptEncoding, "identity")
	return &Problem{Status: http.StatusUnsupportedMediaType, Detail: "Send the body as it is, without Content-Encoding."}
}

// readBody returns a body of at most limit bytes, which is UTF-8.
func readBody(w http.ResponseWriter, request *http.Request, limit int64) ([]byte, error) {
	if request.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, request.Body, limit))
	if err != nil {
		return nil, readProblem(err)
	}
	if at := invalidUTF8(body); at >= 0 {
		return nil, &Problem{Status: http.StatusBadRequest, Detail: fmt.Sprintf("The body is not UTF-8 (at byte %d).", at+1)}
	}
	return body, nil
}

// readProblem says why a body could not be read.
func readProblem(err error) error {
	if limit, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(limit.Limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &Problem{Status: http.StatusRequestTimeout, Detail: "The body came too slowly."}
	}
	return &Problem{Status: http.StatusBadRequest, Detail: detailUnreached}
}

// invalidUTF8 returns where text stops being UTF-8, -1 if nowhere.
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

// jsonText returns body from where its value begins, if it is JSON. The problem
// does not repeat any of it.
func jsonText(body []byte) ([]byte, error) {
	if !json.Valid(body) {
		return nil, &Problem{Status: http.StatusBadRequest, Detail: fmt.Sprintf("The body is not valid JSON (at byte %d).", invalidJSON(body))}
	}
	return bytes.TrimLeft(body, jsonSpace), nil
}

// invalidJSON returns where text stops being JSON, counted from 1.
func invalidJSON(text []byte) int64 {
	var raw json.RawMessage
	syntax, ok := errors.AsType[*json.SyntaxError](json.Unmarshal(text, &raw))
	if !ok {
		return int64(len(text))
	}
	return syntax.Offset
}
