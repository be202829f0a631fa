package httpapi

import (
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
)

const (
	mimeNDJSON     = "application/x-ndjson"
	headerEncoding = "Content-Encoding"
	streamField    = "stream" // of the echo context: the body is NDJSON
)

// ndjsonTypes are the names in use; none is registered.
var ndjsonTypes = map[string]bool{
	mimeNDJSON: true, "application/ndjson": true, "application/jsonl": true, "application/x-jsonl": true,
	"application/jsonlines": true, "application/x-jsonlines": true, "application/json-lines": true,
}

func isStream(c echo.Context) bool { return c.Get(streamField) != nil }

// checkMediaType returns a problem 415 unless the body is uncompressed JSON, or
// NDJSON if that is allowed, which it notes in c.
func checkMediaType(c echo.Context, ndjsonAllowed bool) error {
	if err := refuseEncoding(c); err != nil {
		return err
	}
	kind, charset := mediaType(c.Request())
	switch {
	case charset != "" && charset != "utf-8" && charset != "us-ascii":
		return unsupported("Send the body as UTF-8.")
	case kind == echo.MIMEApplicationJSON:
		return nil
	case ndjsonAllowed && ndjsonTypes[kind]:
		c.Set(streamField, true)
		return nil
	case ndjsonAllowed:
		return unsupported(fmt.Sprintf("Send one event or an array as application/json, or one event per line as %s.", mimeNDJSON))
	default:
		return unsupported("Send the body as application/json.")
	}
}

// mediaType returns the type of the body and its charset, in lower case. Two
// headers are none.
func mediaType(request *http.Request) (kind, charset string) {
	values := request.Header.Values(echo.HeaderContentType)
	if len(values) != 1 {
		return "", ""
	}
	kind, parameters, err := mime.ParseMediaType(values[0])
	if err != nil && parameters == nil {
		kind, _, _ = strings.Cut(strings.ToLower(values[0]), ";")
		return strings.TrimSpace(kind), ""
	}
	return kind, strings.ToLower(parameters["charset"])
}

// refuseEncoding refuses compressed bodies, whose size is unknown in advance.
func refuseEncoding(c echo.Context) error {
	encoding := strings.TrimSpace(strings.Join(c.Request().Header.Values(headerEncoding), ","))
	if encoding == "" || strings.EqualFold(encoding, "identity") {
		return nil
	}
	c.Response().Header().Set(echo.HeaderAcceptEncoding, "identity")
	return unsupported("Send the body uncompressed, without Content-Encoding.")
}

func unsupported(detail string) error {
	return &Problem{Status: http.StatusUnsupportedMediaType, Detail: detail}
}
