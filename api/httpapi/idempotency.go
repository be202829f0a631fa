package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"diehard/api/idempotency"
)

const (
	headerIdempotencyKey = "Idempotency-Key"
	headerReplayed       = "Idempotency-Replayed"
	maxKeyBytes          = 255
)

// idempotencyKey returns the key of a request, zero without one. The draft specifies
// a quoted string; most clients send it bare.
//
// Source: IETF draft-ietf-httpapi-idempotency-key-header.
func idempotencyKey(c echo.Context) (idempotency.Key, error) {
	values := c.Request().Header.Values(headerIdempotencyKey)
	if len(values) == 0 {
		return idempotency.Key{}, nil
	}
	key := strings.TrimSpace(values[0])
	if len(key) > 1 && strings.HasPrefix(key, `"`) && strings.HasSuffix(key, `"`) {
		key = key[1 : len(key)-1]
	}
	if len(values) > 1 || key == "" || len(key) > maxKeyBytes || strings.ContainsFunc(key, notInKey) {
		return idempotency.Key{}, &Problem{
			Status: http.StatusBadRequest,
			Detail: fmt.Sprintf("%s must be one value of 1 to %d visible ASCII characters, such as a UUID.", headerIdempotencyKey, maxKeyBytes),
		}
	}
	return idempotency.NewKey(callerOf(c), key), nil
}

func notInKey(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }

// keyProblem maps the errors of idempotency keys to problems; other errors stay as they are.
func keyProblem(err error) error {
	switch {
	case errors.Is(err, idempotency.ErrRunning):
		return &Problem{
			Status: http.StatusConflict, transient: true,
			Detail: "A request with this Idempotency-Key is still in progress. Repeat yours to get its answer.",
		}
	case errors.Is(err, idempotency.ErrReused):
		return &Problem{
			Status: http.StatusUnprocessableEntity,
			Detail: "This Idempotency-Key was used for another request. Send the same bytes, or another key.",
		}
	default:
		return err
	}
}

// replayed marks the answer of an earlier request.
func replayed(c echo.Context) { c.Response().Header().Set(headerReplayed, "true") }
