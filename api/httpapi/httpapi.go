// Package httpapi is the HTTP side of the api: it decodes requests, calls the
// use cases and encodes their answers. Every error is a problem document
// (RFC 9457), and every answer carries X-Request-ID. What it understands is
// described in docs/openapi.yaml, and its tests hold it to that.
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

// Users is the use case behind /users.
type Users interface {
	Create(ctx context.Context, n users.NewUser) (users.User, error)
	Get(ctx context.Context, id uuid.UUID) (users.User, error)
}

// Deps is what the handlers need. All fields are required but those that say so.
type Deps struct {
	Users       Users
	Events      Events
	Ready       func(context.Context) error // nil when requests can be served
	Registry    *prometheus.Registry        // served at /metrics
	Log         *slog.Logger
	Timeouts    Timeouts
	MaxRequests int      // at a time
	Keys        keys.Set // none: nobody needs one
	RateLimit   float64  // requests a second of each caller; 0: no limit
}

// New returns the routes with their middleware.
func New(d Deps) *echo.Echo {
	e := echo.New()
	e.HTTPErrorHandler = problemHandler(d.Log)
	e.Use(
		requestScope(d.Log, d.Timeouts),
		secured,
		web.Metrics(d.Registry),
		recovered,
	)
	guarded := []echo.MiddlewareFunc{
		requireKey(d.Keys),
		rateLimited(d.RateLimit),
		admitted(d.MaxRequests),
		web.Trace("postgresql"), // inside of the others: their 503 is no outage of PostgreSQL
		recovered,
	}
	counts := newPublished(d.Registry)
	e.POST("/users", createUser(d.Users, counts), guarded...)
	e.GET("/users/:id", getUser(d.Users), guarded...)
	e.POST(pathEvents, publishEvents(d.Events, d.Timeouts, counts), guarded...)
	e.GET("/healthz", healthy)
	e.GET("/readyz", ready(d.Ready))
	e.GET("/metrics", echo.WrapHandler(telemetry.MetricsHandler(d.Registry)), localOrKey(d.Keys))
	addDocs(e)
	return e
}

// status is the body of the probes.
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
