package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"diehard/api/events"
)

const (
	headerIdempotencyKey = "Idempotency-Key"
	headerReplayed       = "Idempotency-Replayed"
	maxKeyBytes          = 255
)

// accepted is the answer to events.
type accepted struct {
	IDs []uuid.UUID `json:"ids"`
}

func publishEvents(service Events, t Timeouts, m *published) echo.HandlerFunc {
	return func(c echo.Context) error {
		key, err := idempotencyKey(c.Request())
		if err != nil {
			return err
		}
		body, err := openEvents(c, t)
		if err != nil {
			return err
		}
		receipt, err := service.Accept(c.Request().Context(), events.Request{
			Source: body, Caller: callerOf(c), Key: key, Digest: body.sum,
		})
		m.count(receipt, err)
		if err != nil {
			return eventsProblem(err, body.single)
		}
		if receipt.Repeated {
			c.Response().Header().Set(headerReplayed, "true")
		}
		return c.JSON(http.StatusAccepted, accepted{receipt.IDs})
	}
}

// idempotencyKey returns the key of a request, empty if it has none. The draft
// wants a quoted string; most clients send it bare.
//
// Source: IETF draft-ietf-httpapi-idempotency-key-header.
func idempotencyKey(request *http.Request) (string, error) {
	values := request.Header.Values(headerIdempotencyKey)
	if len(values) == 0 {
		return "", nil
	}
	key := strings.TrimSpace(values[0])
	if len(key) > 1 && strings.HasPrefix(key, `"`) && strings.HasSuffix(key, `"`) {
		key = key[1 : len(key)-1]
	}
	if len(values) > 1 || key == "" || len(key) > maxKeyBytes || strings.ContainsFunc(key, notInKey) {
		return "", &Problem{
			Status: http.StatusBadRequest,
			Detail: fmt.Sprintf("%s must be one value of 1 to %d visible ASCII characters, such as a UUID.", headerIdempotencyKey, maxKeyBytes),
		}
	}
	return key, nil
}

func notInKey(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }

// eventsProblem turns the answers of the use case into problems; other errors
// stay as they are.
func eventsProblem(err error, single bool) error {
	if invalid, ok := errors.AsType[*events.InvalidError](err); ok {
		return &Problem{Status: http.StatusUnprocessableEntity, Detail: detailInvalid, Errors: eventErrors(invalid, single)}
	}
	switch {
	case errors.Is(err, events.ErrTooMany):
		return &Problem{
			Status: http.StatusRequestEntityTooLarge,
			Detail: fmt.Sprintf("A request may have at most %d events. None was stored.", events.MaxEvents),
		}
	case errors.Is(err, events.ErrKeyRunning):
		return &Problem{
			Status: http.StatusConflict, again: true,
			Detail: "A request with this Idempotency-Key is still running. Repeat yours to get its answer.",
		}
	case errors.Is(err, events.ErrKeyReused):
		return &Problem{
			Status: http.StatusUnprocessableEntity,
			Detail: "This Idempotency-Key was used for a request with another body. Send the same bytes, or another key.",
		}
	case errors.Is(err, events.ErrBusy):
		return &Problem{Status: http.StatusTooManyRequests, Detail: "Too many large requests are being stored at the moment. Try again, or send fewer at a time."}
	default:
		return err
	}
}

// eventErrors names the fields of a single event without its place.
func eventErrors(invalid *events.InvalidError, single bool) []FieldError {
	list := make([]FieldError, len(invalid.Fields))
	for i, f := range invalid.Fields {
		if single {
			f.Field = strings.TrimPrefix(f.Field, "events[0].")
		}
		list[i] = FieldError(f)
	}
	return list
}

// Events is the use case behind /events.
type Events interface {
	Accept(ctx context.Context, r events.Request) (events.Receipt, error)
}
