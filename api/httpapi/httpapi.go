// Package httpapi is the HTTP side of the api: it decodes requests, calls the
// use cases and encodes their answers. Every error is a problem document
// (RFC 9457), and every answer carries X-Request-ID.
package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"diehard/api/users"
	"diehard/shared/telemetry"
	"diehard/shared/telemetry/web"
)

// Users is the use case behind /users.
type Users interface {
	Create(ctx context.Context, n users.NewUser) (users.User, error)
	Get(ctx context.Context, id uuid.UUID) (users.User, error)
}

// Deps is what the handlers need. All fields are required.
type Deps struct {
	Users    Users
	Ready    func(context.Context) error // nil when requests can be served
	Registry *prometheus.Registry        // served at /metrics
	Log      *slog.Logger
	Timeout  time.Duration // of a request
}

// New returns the routes with their middleware.
func New(d Deps) *echo.Echo {
	e := echo.New()
	e.HTTPErrorHandler = problemHandler(d.Log)
	e.Use(
		requestScope(d.Log, d.Timeout),
		web.Metrics(d.Registry),
		web.Trace("postgresql"),
		recovered,
	)
	e.POST("/users", createUser(d.Users))
	e.GET("/users/:id", getUser(d.Users))
	e.GET("/healthz", healthy)
	e.GET("/readyz", ready(d.Ready))
	e.GET("/metrics", echo.WrapHandler(telemetry.MetricsHandler(d.Registry)))
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
