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

// accepted is the body of the answer.
type accepted struct {
	IDs []uuid.UUID `json:"ids"`
}

func publishEvents(service Events, t Timeouts, m *eventCounter) echo.HandlerFunc {
	return func(c echo.Context) error {
		key, err := idempotencyKey(c)
		if err != nil {
			return err
		}
		body, err := openEvents(c, t, !key.IsZero())
		if err != nil {
			return err
		}
		result, err := service.Publish(c.Request().Context(), events.Request{Source: body, Caller: callerOf(c), Key: key, Digest: body.digest})
		m.count(result, err)
		if err != nil {
			return eventsProblem(err, body.single)
		}
		if result.Repeated {
			replayed(c)
		}
		return c.JSON(http.StatusAccepted, accepted{result.IDs})
	}
}

// eventsProblem maps errors of the client to problems; other errors stay as they are.
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
	default:
		return keyProblem(err)
	}
}

// eventErrors lists the fields, of a single event without its index.
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

// Events is what POST /events calls.
type Events interface {
	Publish(ctx context.Context, r events.Request) (events.Result, error)
}
