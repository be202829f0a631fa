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

// requestScope gives every request an id and logs it at debug level.
func requestScope(log *slog.Logger) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			start := time.Now()
			request := c.Request()
			c.Response().Header().Set(echo.HeaderXRequestID, validRequestID(request.Header.Get(echo.HeaderXRequestID)))

			err := next(c)
			if ctx := request.Context(); log.Enabled(ctx, slog.LevelDebug) {
				logRequest(ctx, log, c, time.Since(start))
			}
			return err
		}
	}
}

// logRequest logs the route instead of the path, which may contain personal data.
func logRequest(ctx context.Context, log *slog.Logger, c echo.Context, took time.Duration) {
	log.LogAttrs(ctx, slog.LevelDebug, "request",
		slog.String("request_id", requestID(c)),
		slog.String("method", c.Request().Method),
		slog.String("route", c.Path()),
		slog.Int("status", c.Response().Status),
		slog.Duration("took", took))
}

// requestID reads the id from the header of the answer.
func requestID(c echo.Context) string {
	return c.Response().Header().Get(echo.HeaderXRequestID)
}

// validRequestID returns given if it is safe in logs and headers, else a new id.
func validRequestID(given string) string {
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
		alphabetic := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		digit := c >= '0' && c <= '9'
		if !alphabetic && !digit && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// panicError is a panic of a handler with its stack.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// recoverPanic turns a panic of a handler into an error: the request fails, the
// process does not.
func recoverPanic(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			switch value := recover(); {
			case value == nil:
			case isAbort(value):
				panic(value) //nolint:forbidigo // net/http handles this one
			default:
				err = &panicError{value: value, stack: debug.Stack()}
			}
		}()
		return next(c)
	}
}

// isAbort reports whether value is net/http's request to close the connection.
func isAbort(value any) bool {
	err, ok := value.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}
