package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
)

const maxBodyBytes = 64 << 10

// readJSON decodes the body into target, a pointer to a struct. Unknown fields
// are ignored. Errors are problems: 415, 413, 400, or 422 for a field of the
// wrong type.
func readJSON(c echo.Context, target any) error {
	request := c.Request()
	mediaType, _, _ := strings.Cut(request.Header.Get(echo.HeaderContentType), ";")
	if !strings.EqualFold(strings.TrimSpace(mediaType), echo.MIMEApplicationJSON) {
		return &Problem{Status: http.StatusUnsupportedMediaType, Detail: "Send the body as application/json."}
	}
	body, err := readBody(c.Response(), request)
	if err != nil {
		return err
	}
	return jsonProblem(json.Unmarshal(body, target))
}

func readBody(w http.ResponseWriter, request *http.Request) ([]byte, error) {
	if request.ContentLength > maxBodyBytes {
		return nil, tooLarge()
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, request.Body, maxBodyBytes))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge()
	}
	if err != nil {
		return nil, &Problem{Status: http.StatusBadRequest, Detail: "The body could not be read to its end."}
	}
	return body, nil
}

func tooLarge() error {
	return &Problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("The body may have at most %d bytes.", maxBodyBytes)}
}

// jsonProblem says what is wrong with a body without repeating it.
func jsonProblem(err error) error {
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
		return &Problem{
			Status: http.StatusUnprocessableEntity,
			Detail: "Some fields are not valid.",
			Errors: []FieldError{{Field: wrong.Field, Message: "must be a " + wrong.Type.String()}},
		}
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return &Problem{Status: http.StatusBadRequest, Detail: fmt.Sprintf("The body is not valid JSON (at byte %d).", syntax.Offset)}
	}
	return &Problem{Status: http.StatusBadRequest, Detail: "The body is not a JSON object."}
}
