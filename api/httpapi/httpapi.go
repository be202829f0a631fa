// Package httpapi serves the api over HTTP: it decodes requests, calls users and
// events, and encodes the answers. Every error is a problem document (RFC 9457),
// and every answer has an X-Request-ID. docs/openapi.yaml describes it, and the
// tests compare both.
package httpapi

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"diehard/api/keys"
	"diehard/api/users"
	"diehard/shared/telemetry"
	"diehard/shared/telemetry/web"
)

const pathEvents = "/events"

// Users is what the routes under /users call.
type Users interface {
	Create(ctx context.Context, r users.Request) (u users.User, repeated bool, err error)
	Get(ctx context.Context, id uuid.UUID) (users.User, error)
}

// Deps holds the dependencies of the handlers. All are required unless noted.
type Deps struct {
	Users       Users
	Events      Events
	Ready       func(context.Context) error // nil when requests can be served
	Registry    *prometheus.Registry        // served at /metrics
	Environment string                      // label of the api's metrics; empty: none
	Log         *slog.Logger
	Timeouts    Timeouts

	MaxRequests  int      // in progress, without NDJSON
	MaxStreams   int      // NDJSON requests in progress
	MaxBodyBytes int64    // of JSON bodies in memory
	RateLimit    float64  // requests per second of each caller; 0: no limit
	Keys         keys.Set // empty: no key is required

	// LoopbackOnly refuses requests whose Host is neither a loopback name nor in Hosts.
	LoopbackOnly bool
	Hosts        []string
}

// New returns the routes with their middleware.
func New(d Deps) *echo.Echo {
	e := echo.New()
	own := d.labelled()
	e.HTTPErrorHandler = problemHandler(d.Log)
	e.Use(
		requestScope(d.Log),
		securityHeaders,
		web.Metrics(own),
		recoverPanic,
		checkHost(d.LoopbackOnly, d.Hosts),
	)
	a := newAdmission(d, own)
	// receive is the middleware of what needs a key, and reads a body.
	guarded := func(receive ...echo.MiddlewareFunc) []echo.MiddlewareFunc {
		before := []echo.MiddlewareFunc{requireKey(d.Keys), limitRate(d.RateLimit)}
		return append(append(before, receive...),
			a.place,
			a.deadline,
			web.Trace("postgresql"), // inside the others: their 503 is no outage of PostgreSQL
			recoverPanic,
		)
	}
	counts := newEventCounter(own)
	e.POST("/users", createUser(d.Users, counts), guarded(a.receive(maxBodyBytes, false))...)
	get(e, "/users/:id", getUser(d.Users), guarded()...)
	e.POST(pathEvents, publishEvents(d.Events, d.Timeouts, counts), guarded(a.receive(maxEventsBytes, true))...)
	get(e, "/healthz", healthy)
	get(e, "/readyz", ready(d.Ready), a.deadline)
	get(e, "/metrics", echo.WrapHandler(telemetry.MetricsHandler(d.Registry)), localOrKey(d.Keys))
	addDocs(e)
	return e
}

// get serves path for GET and HEAD.
func get(e *echo.Echo, path string, handler echo.HandlerFunc, middleware ...echo.MiddlewareFunc) {
	e.Match([]string{http.MethodGet, http.MethodHead}, path, handler, middleware...)
}

// labelled registers the api's own metrics with the environment.
func (d Deps) labelled() prometheus.Registerer {
	if d.Environment == "" {
		return d.Registry
	}
	return prometheus.WrapRegistererWith(prometheus.Labels{"environment": d.Environment}, d.Registry)
}

// MetricsHandler serves registry at /metrics, for a listener of its own.
func MetricsHandler(registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", telemetry.MetricsHandler(registry))
	return mux
}

// status is the body of the probes' answers.
type status struct {
	Status string `json:"status"`
}

func healthy(c echo.Context) error {
	return c.JSON(http.StatusOK, status{"ok"})
}

func ready(check func(context.Context) error) echo.HandlerFunc {
	return func(c echo.Context) error {
		if err := check(c.Request().Context()); err != nil {
			return err
		}
		return c.JSON(http.StatusOK, status{"ready"})
	}
}
