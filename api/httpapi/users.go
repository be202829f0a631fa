package httpapi

import (
	"errors"
	"net/http"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"diehard/api/users"
)

func createUser(service Users, m *published) echo.HandlerFunc {
	return func(c echo.Context) error {
		var n users.NewUser
		if err := readJSON(c, &n); err != nil {
			return err
		}
		user, err := service.Create(c.Request().Context(), n)
		m.user(err)
		if err != nil {
			return userProblem(err)
		}
		c.Response().Header().Set(echo.HeaderLocation, "/users/"+user.ID.String())
		return c.JSON(http.StatusCreated, user)
	}
}

func getUser(service Users) echo.HandlerFunc {
	const canonicalLength = 36 // other spellings of an id are other addresses
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

// userProblem turns the answers of the use case into problems; other errors
// stay as they are.
func userProblem(err error) error {
	if invalid, ok := errors.AsType[*users.InvalidError](err); ok {
		return &Problem{Status: http.StatusUnprocessableEntity, Detail: detailInvalid, Errors: fieldErrors(invalid)}
	}
	switch {
	case errors.Is(err, users.ErrEmailTaken):
		return &Problem{Status: http.StatusConflict, Detail: users.ErrEmailTaken.Error()}
	case errors.Is(err, users.ErrNotFound):
		return &Problem{Status: http.StatusNotFound, Detail: users.ErrNotFound.Error()}
	default:
		return err
	}
}

func fieldErrors(invalid *users.InvalidError) []FieldError {
	list := make([]FieldError, len(invalid.Fields))
	for i, f := range invalid.Fields {
		list[i] = FieldError(f)
	}
	return list
}
