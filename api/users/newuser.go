package users

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"

	"github.com/go-playground/validator/v10"
	"github.com/google/uuid"
)

// NewUser holds the fields of a user to create; the names may be empty. Lengths are in
// characters.
type NewUser struct {
	Email     string `json:"email" validate:"required,max=254,printable,email"`
	FirstName string `json:"first_name" validate:"max=100,printable"`
	LastName  string `json:"last_name" validate:"max=100,printable"`
}

// FieldError says what is wrong with one field.
type FieldError struct {
	Field   string `json:"field"` // as in JSON
	Message string `json:"message"`
}

// InvalidError names every field that breaks a rule.
type InvalidError struct{ Fields []FieldError }

// Error names the fields, never their values.
func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		parts[i] = f.Field + " " + f.Message
	}
	return "invalid user: " + strings.Join(parts, "; ")
}

func (n NewUser) trimmed() NewUser {
	return NewUser{
		Email:     strings.TrimSpace(n.Email),
		FirstName: strings.TrimSpace(n.FirstName),
		LastName:  strings.TrimSpace(n.LastName),
	}
}

// user returns n as a user with an id and a time, in microseconds as PostgreSQL stores it.
func (n NewUser) user() (User, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return User{}, fmt.Errorf("make a user id: %w", err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	return User{
		ID: id, Email: n.Email, FirstName: n.FirstName, LastName: n.LastName,
		IsActive: true, CreatedAt: now, UpdatedAt: now,
	}, nil
}

var rules = newRules()

func newRules() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(field reflect.StructField) string {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		return name
	})
	if err := v.RegisterValidation("printable", isPrintable); err != nil {
		panic(err) //nolint:forbidigo // the name of the rule above is wrong: no program to run
	}
	return v
}

// isPrintable refuses control characters; PostgreSQL's text cannot hold a zero.
func isPrintable(field validator.FieldLevel) bool {
	return strings.IndexFunc(field.Field().String(), unicode.IsControl) < 0
}

// validate returns an [*InvalidError] that names every bad field.
func (n NewUser) validate() error {
	err := rules.Struct(n)
	var broken validator.ValidationErrors
	if !errors.As(err, &broken) {
		return err
	}
	invalid := &InvalidError{}
	for _, b := range broken {
		invalid.Fields = append(invalid.Fields, FieldError{Field: b.Field(), Message: messageFor(b)})
	}
	return invalid
}

func messageFor(broken validator.FieldError) string {
	switch broken.Tag() {
	case "required":
		return "is required"
	case "max":
		return "must have at most " + broken.Param() + " characters"
	case "email":
		return "must be an email address"
	default:
		return "must not contain control characters"
	}
}
