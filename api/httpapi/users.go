package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"diehard/api/users"
)

func createUser(service Users, m *eventCounter) echo.HandlerFunc {
	return func(c echo.Context) error {
		key, err := idempotencyKey(c)
		if err != nil {
			return err
		}
		n, err := readUser(c)
		if err != nil {
			return err
		}
		request := users.Request{User: n, Caller: callerOf(c), Key: key}
		if !key.IsZero() {
			request.Digest = digestOf("user", bodyOf(c))
		}
		user, repeated, err := service.Create(c.Request().Context(), request)
		m.user(repeated, err)
		if err != nil {
			return userProblem(err)
		}
		if repeated {
			replayed(c)
		}
		c.Response().Header().Set(echo.HeaderLocation, "/users/"+user.ID.String())
		return c.JSON(http.StatusCreated, user)
	}
}

// readUser parses the body. Errors are problems: those of [readObject], or 422.
func readUser(c echo.Context) (n users.NewUser, err error) {
	const maxErrors = 20
	object, err := readObject(c)
	if err != nil {
		return n, err
	}
	fields := map[string]*string{"email": &n.Email, "first_name": &n.FirstName, "last_name": &n.LastName}
	var wrong []FieldError
	readFields(object, "a user", func(name string, value json.RawMessage) (problem string, known bool) {
		field, known := fields[name]
		if known {
			*field, problem = readString(value)
		}
		return problem, known
	}, func(field, message string) {
		if len(wrong) < maxErrors {
			wrong = append(wrong, FieldError{Field: field, Message: message})
		}
	})
	if len(wrong) > 0 {
		return n, &Problem{Status: http.StatusUnprocessableEntity, Detail: detailInvalid, Errors: wrong}
	}
	return n, nil
}

func getUser(service Users) echo.HandlerFunc {
	const canonicalLength = 36 // only the canonical form of an id is a path
	return func(c echo.Context) error {
		text := c.Param("id")
		id, err := uuid.Parse(text)
		if err != nil || len(text) != canonicalLength {
			return userProblem(users.ErrNotFound)
		}
		user, err := service.Get(c.Request().Context(), id)
		if err != nil {
			return userProblem(err)
		}
		return c.JSON(http.StatusOK, user)
	}
}

// userProblem maps errors of the client to problems; other errors stay as they are.
func userProblem(err error) error {
	if invalid, ok := errors.AsType[*users.InvalidError](err); ok {
		return &Problem{Status: http.StatusUnprocessableEntity, Detail: detailInvalid, Errors: fieldErrors(invalid)}
	}
	switch {
	case errors.Is(err, users.ErrEmailTaken):
		return &Problem{Status: http.StatusConflict, Detail: users.ErrEmailTaken.Error()}
	case errors.Is(err, users.ErrNotFound):
		return &Problem{Status: http.StatusNotFound, Detail: users.ErrNotFound.Error()}
	case errors.Is(err, users.ErrDeleted):
		return &Problem{Status: http.StatusConflict, Detail: users.ErrDeleted.Error()}
	default:
		return keyProblem(err)
	}
}

func fieldErrors(invalid *users.InvalidError) []FieldError {
	list := make([]FieldError, len(invalid.Fields))
	for i, f := range invalid.Fields {
		list[i] = FieldError(f)
	}
	return list
}
