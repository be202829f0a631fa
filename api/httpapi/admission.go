package httpapi

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"diehard/api/share"
)

// admission divides among callers what requests hold: places, and memory for
// bodies. What a slow client can hold is apart from what others need: a JSON body
// is received before its request gets a place, and NDJSON has places of its own.
type admission struct {
	requests *share.Pool // places
	streams  *share.Pool // places of NDJSON requests, which hold a connection to PostgreSQL while their body arrives
	bytes    *share.Pool // of bodies in memory
	timeouts Timeouts
}

func newAdmission(d Deps, registry prometheus.Registerer) *admission {
	a := &admission{
		requests: share.NewPool(int64(d.MaxRequests)), streams: share.NewPool(int64(d.MaxStreams)),
		bytes: share.NewPool(d.MaxBodyBytes), timeouts: d.Timeouts,
	}
	gauge := func(name, help string, size int64, pool *share.Pool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "diehard", Subsystem: "api", Name: name, Help: help},
			func() float64 { return float64(size - pool.Free()) })
	}
	registry.MustRegister(
		gauge("requests_in_progress", "Requests that hold one of API_MAX_REQUESTS places.", int64(d.MaxRequests), a.requests),
		gauge("streams_in_progress", "NDJSON requests in progress.", int64(d.MaxStreams), a.streams),
		gauge("body_bytes", "Size of the JSON bodies in memory, of API_MAX_BODY_BYTES.", d.MaxBodyBytes, a.bytes),
	)
	return a
}

// sharerOf names who gets a share: the caller, or the address without keys.
func sharerOf(c echo.Context) string {
	return cmp.Or(callerOf(c), addressOf(c.Request()))
}

// place holds a place for the request: 503 if all are taken, 429 if the caller has
// its share. NDJSON has places of its own.
func (a *admission) place(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if isStream(c) {
			return next(c)
		}
		sharer := sharerOf(c)
		switch err := a.requests.Take(sharer, 1); {
		case errors.Is(err, share.ErrExhausted):
			return &Problem{Status: http.StatusServiceUnavailable, Detail: "Too many requests are in progress. Try again."}
		case err != nil:
			return tooMany("Too many of your requests are in progress. Try again, or send fewer at a time.")
		}
		defer a.requests.Return(sharer, 1)
		return next(c)
	}
}

// streamPlace holds a place for an NDJSON request. It is taken before the body is
// read, and refused with 429.
func (a *admission) streamPlace(c echo.Context, next echo.HandlerFunc) error {
	sharer := sharerOf(c)
	if a.streams.Take(sharer, 1) != nil {
		return tooMany("Too many NDJSON requests are in progress. Try again, or send fewer at a time.")
	}
	defer a.streams.Return(sharer, 1)
	return next(c)
}

// deadline bounds the time of the request from here on, for the handler and for the
// connection.
func (a *admission) deadline(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		timeout := a.timeouts.Request
		if isStream(c) {
			timeout = a.timeouts.Stream
		}
		request := c.Request()
		ctx, cancel := context.WithTimeout(request.Context(), timeout)
		defer cancel()
		c.SetRequest(request.WithContext(ctx))
		control, end := http.NewResponseController(c.Response()), time.Now().Add(timeout+writeMargin)
		_ = control.SetReadDeadline(end) // both fail without a connection, as in tests
		_ = control.SetWriteDeadline(end)
		return next(c)
	}
}

func tooMany(detail string) error {
	return &Problem{Status: http.StatusTooManyRequests, Detail: detail}
}
