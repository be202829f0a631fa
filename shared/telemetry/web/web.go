// Package web has the middlewares that trace and measure the requests of an echo
// server. It is separate from telemetry so that programs without an echo server do
// not link one.
//
// Both call the server's error handler on a failed request, because they need the
// status, and return the error; the error handler must therefore do nothing if the
// response is committed, like echo's default handler.
package web

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/getsentry/sentry-go"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"diehard/shared/telemetry"
)

// untraced are the routes of probes and scrapers.
var untraced = map[string]bool{"/healthz": true, "/readyz": true, "/metrics": true, "/openapi.yaml": true}

// Trace starts a Sentry transaction for every request, in the caller's trace if
// there is one. A server error is reported with its route; status 503 is reported
// once per outage of dependency, not once per request.
//
// It must wrap echo's Recover, so that panics arrive as errors.
func Trace(dependency string) echo.MiddlewareFunc {
	outage := telemetry.NewOutage(dependency)
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if untraced[c.Path()] {
				return next(c)
			}
			span := startTransaction(c)
			status, err := answer(c, next)
			finishTransaction(c, span, status)
			report(c, outage, status, err)
			return err
		}
	}
}

func startTransaction(c echo.Context) *sentry.Span {
	ctx, options := telemetry.ContinueTrace(c.Request())
	defer func() { c.SetRequest(c.Request().WithContext(ctx)) }()
	if !telemetry.Tracing(ctx) {
		return nil
	}
	ctx = sentry.SetHubOnContext(ctx, sentry.CurrentHub().Clone())
	span := sentry.StartSpan(ctx, "http.server", append(options,
		sentry.WithTransactionName(name(c)),
		sentry.WithTransactionSource(sentry.SourceRoute),
		sentry.WithSpanOrigin(sentry.SpanOriginEcho))...)
	ctx = span.Context()
	return span
}

func finishTransaction(c echo.Context, span *sentry.Span, status int) {
	if span == nil {
		return
	}
	span.Status = sentry.HTTPtoSpanStatus(status)
	span.SetData("http.request.method", c.Request().Method)
	span.SetData("http.route", route(c))
	span.SetData("http.response.status_code", status)
	span.Finish()
}

func report(c echo.Context, outage *telemetry.Outage, status int, err error) {
	ctx := c.Request().Context()
	switch {
	case status == http.StatusServiceUnavailable:
		if err == nil {
			err = errors.New(http.StatusText(status))
		}
		outage.Failed(ctx, err)
	case status >= http.StatusInternalServerError:
		if err == nil {
			err = errors.New(http.StatusText(status))
		}
		telemetry.Report(ctx, name(c), err)
	case status < http.StatusBadRequest:
		outage.Recovered(ctx)
	}
}

// Metrics counts and times requests by method, route and status in
// http_request_duration_seconds.
func Metrics(registry prometheus.Registerer) echo.MiddlewareFunc {
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "http_request_duration_seconds",
		Help:    "Time from the request's head to the end of the answer.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"method", "route", "status"})
	registry.MustRegister(duration)
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			start := time.Now()
			status, err := answer(c, next)
			duration.WithLabelValues(method(c), route(c), strconv.Itoa(status)).Observe(time.Since(start).Seconds())
			return err
		}
	}
}

// answer runs next and returns the status that the client got.
func answer(c echo.Context, next echo.HandlerFunc) (status int, err error) {
	err = next(c)
	if err != nil && !c.Response().Committed {
		c.Error(err)
	}
	return c.Response().Status, err
}

func name(c echo.Context) string {
	return fmt.Sprintf("%s %s", method(c), route(c))
}

// route is the pattern, not the path: the number of paths is unbounded.
func route(c echo.Context) string {
	if c.Path() == "" {
		return "unmatched"
	}
	return c.Path()
}

// method returns "other" for a method that a client made up: labels must be bounded.
func method(c echo.Context) string {
	switch m := c.Request().Method; m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodOptions:
		return m
	default:
		return "other"
	}
}
