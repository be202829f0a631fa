package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"diehard/shared/postgres"
)

const (
	mimeProblem = "application/problem+json"
	retryAfter  = 2 * time.Second

	// statusClientClosed is for logs and metrics: the client closed the connection.
	statusClientClosed = 499
)

// Problem is the body of every error, and an error itself. Handlers set Status,
// Detail and Errors; send sets the rest.
//
// Source: RFC 9457, Problem Details for HTTP APIs.
type Problem struct {
	Type      string       `json:"type"` // about:blank: the status is enough
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Detail    string       `json:"detail,omitempty"` // for the client; never an internal error's text
	Instance  string       `json:"instance,omitempty"`
	RequestID string       `json:"request_id,omitempty"`
	Errors    []FieldError `json:"errors,omitempty"`

	transient bool // retryable although the status does not say so
}

// FieldError is the problem with one field of the body.
type FieldError struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

// Error implements error.
func (p *Problem) Error() string {
	return strconv.Itoa(p.Status) + ": " + cmp.Or(p.Detail, http.StatusText(p.Status))
}

// problemHandler sends err as a problem document and logs server errors.
func problemHandler(log *slog.Logger) echo.HTTPErrorHandler {
	return func(err error, c echo.Context) {
		if c.Response().Committed {
			return
		}
		p := problemOf(err)
		logProblem(log, c, p, err)
		if sendErr := p.send(c); sendErr != nil {
			log.DebugContext(c.Request().Context(), "answer not sent", "request_id", requestID(c), "error", sendErr)
		}
	}
}

// problemOf returns what the client may see of err.
func problemOf(err error) Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return *p
	}
	if httpErr, ok := errors.AsType[*echo.HTTPError](err); ok {
		return Problem{Status: httpErr.Code, Detail: detailOf(httpErr.Code)}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Problem{Status: statusClientClosed, Title: "Client Closed Request"}
	case databaseProblem(err) != "":
		return Problem{Status: http.StatusServiceUnavailable, Detail: databaseProblem(err)}
	default:
		return Problem{Status: http.StatusInternalServerError, Detail: "Internal error. Report the request id to the operator."}
	}
}

// detailOf returns the detail for an error of the router.
func detailOf(code int) string {
	switch code {
	case http.StatusNotFound:
		return "No such resource."
	case http.StatusMethodNotAllowed:
		return "This resource does not support the method; see the Allow header."
	default:
		return ""
	}
}

// send completes p and writes it.
func (p Problem) send(c echo.Context) error {
	p.Type = cmp.Or(p.Type, "about:blank")
	p.Title = cmp.Or(p.Title, http.StatusText(p.Status))
	p.Instance = c.Request().URL.Path
	p.RequestID = requestID(c)
	if p.retryable() {
		c.Response().Header().Set(echo.HeaderRetryAfter, strconv.Itoa(int(retryAfter.Seconds())))
	}
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return c.Blob(p.Status, mimeProblem, body)
}

// retryable reports whether the same request may succeed later.
func (p Problem) retryable() bool {
	return p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests || p.transient
}

// logProblem logs server errors.
func logProblem(log *slog.Logger, c echo.Context, p Problem, err error) {
	level := slog.LevelError
	switch {
	case p.Status < http.StatusInternalServerError:
		return
	case p.Status == http.StatusServiceUnavailable:
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("request_id", requestID(c)),
		slog.String("method", c.Request().Method),
		slog.String("route", c.Path()),
		slog.Int("status", p.Status),
		slog.Any("error", postgres.Redact(err)),
	}
	if panicked, ok := errors.AsType[*panicError](err); ok {
		attrs = append(attrs, slog.String("stack", string(panicked.stack)))
	}
	log.LogAttrs(c.Request().Context(), level, "request failed", attrs...)
}
