package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/labstack/echo/v4"
)

const maxRequestID = 64

// requestScope gives every request an id and a time limit, and logs it at level
// debug.
func requestScope(log *slog.Logger, t Timeouts) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			start := time.Now()
			request := c.Request()
			c.Response().Header().Set(echo.HeaderXRequestID, acceptedID(request.Header.Get(echo.HeaderXRequestID)))
			ctx, cancel := context.WithTimeout(request.Context(), t.of(c))
			defer cancel()
			c.SetRequest(request.WithContext(ctx))

			err := next(c)
			if log.Enabled(ctx, slog.LevelDebug) {
				logRequest(ctx, log, c, time.Since(start))
			}
			return err
		}
	}
}

// logRequest logs the route and not the path, which may name a person.
func logRequest(ctx context.Context, log *slog.Logger, c echo.Context, took time.Duration) {
	log.LogAttrs(ctx, slog.LevelDebug, "request",
		slog.String("request_id", requestID(c)),
		slog.String("method", c.Request().Method),
		slog.String("route", c.Path()),
		slog.Int("status", c.Response().Status),
		slog.Duration("took", took))
}

// requestID is kept where the client gets it from.
func requestID(c echo.Context) string {
	return c.Response().Header().Get(echo.HeaderXRequestID)
}

// acceptedID returns given if it is harmless in logs and headers, else a new id.
func acceptedID(given string) string {
	if given != "" && len(given) <= maxRequestID && isToken(given) {
		return given
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		digit := c >= '0' && c <= '9'
		if !letter && !digit && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// panicError is a panic of a handler, with the place where it happened.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// recovered turns a panic of a handler into an error, so that one request
// fails and not the process.
func recovered(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			switch value := recover(); {
			case value == nil:
			case isAbort(value):
				panic(value) //nolint:forbidigo // handed on, not made
			default:
				err = &panicError{value: value, stack: debug.Stack()}
			}
		}()
		return next(c)
	}
}

// isAbort tells whether a handler wants the connection cut, as net/http allows.
func isAbort(value any) bool {
	err, ok := value.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}
