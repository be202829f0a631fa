// Package config reads the api's settings from the environment.
package config

import (
	"time"

	"diehard/shared/postgres"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
)

// Config is everything that can be set.
type Config struct {
	Addr            string        `env:"API_ADDR" envDefault:"127.0.0.1:8080" doc:"address and port on which the api listens; :8080 is every address"`
	RequestTimeout  time.Duration `env:"API_REQUEST_TIMEOUT" envDefault:"5s" min:"1ms" doc:"longest time that a request may take; then it is answered with 503"`
	Environment     string        `env:"ENVIRONMENT" envDefault:"Local" doc:"name of this installation, stored with every event"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"30s" min:"1s" doc:"longest time between the first signal and the end"`

	Postgres postgres.Config
	Log      telemetry.LogConfig
	Sentry   telemetry.SentryConfig
}

// Parse reads the environment. The error names every bad variable.
func Parse() (Config, error) {
	return settings.Parse[Config]("api")
}
