// Package config reads the api's settings from the environment.
package config

import (
	"errors"
	"fmt"
	"net"
	"time"

	"diehard/api/keys"
	"diehard/shared/postgres"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
)

// local is the environment in which no keys are needed.
const local = "Local"

// Config is everything that can be set.
type Config struct {
	Access          Access
	RequestTimeout  time.Duration `env:"API_REQUEST_TIMEOUT" envDefault:"5s" min:"1ms" doc:"longest time that a request may take; then it is answered with 503"`
	StreamTimeout   time.Duration `env:"API_STREAM_TIMEOUT" envDefault:"1m" min:"1ms" doc:"the same for NDJSON, whose transaction is open while the body arrives"`
	HeaderTimeout   time.Duration `env:"API_HEADER_TIMEOUT" envDefault:"5s" min:"1ms" doc:"longest time that the head of a request may take to arrive"`
	BodyTimeout     time.Duration `env:"API_BODY_TIMEOUT" envDefault:"15s" min:"1ms" doc:"longest time that a body may take to arrive; of NDJSON, longest silence"`
	MaxRequests     int           `env:"API_MAX_REQUESTS" envDefault:"256" min:"1" doc:"most requests at a time, in work or waiting for a connection; more are answered with 503"`
	RateLimit       float64       `env:"API_RATE_LIMIT" envDefault:"0" min:"0" doc:"most requests a second of one key, or of one address where there are no keys; 0 for no limit"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"30s" min:"1s" doc:"longest time between the first signal and the end"`

	Postgres postgres.Config
	Log      telemetry.LogConfig
	Sentry   telemetry.SentryConfig
}

// Access says who may reach the api.
type Access struct {
	Addr        string   `env:"API_ADDR" envDefault:"127.0.0.1:8080" form:"address" doc:"address and port on which the api listens; :8080 is every address"`
	Keys        []string `env:"API_KEYS" secret:"true" doc:"SHA-256 hashes of the keys that callers may send, name:hash or hash, separated by commas (make one: api key NAME); may be empty only if API_ADDR is a loopback address or ENVIRONMENT is Local"`
	Environment string   `env:"ENVIRONMENT" envDefault:"Local" doc:"name of this installation: in logs and Sentry, and stored with events that the api publishes without one of their own; other producers give theirs"`
}

// Validate refuses an api that is open to everybody by oversight.
func (a Access) Validate() error {
	if _, err := keys.Parse(a.Keys); err != nil {
		return fmt.Errorf("API_KEYS: %w; make one with: api key NAME", err)
	}
	if len(a.Keys) == 0 && a.Environment != local && !a.Loopback() {
		return errors.New("API_KEYS is not set, but API_ADDR = \"" + a.Addr + "\" can be reached from elsewhere; " +
			"make a key with: api key NAME, or set API_ADDR to 127.0.0.1, or ENVIRONMENT to Local")
	}
	return nil
}

// Loopback tells whether only this machine reaches the api.
func (a Access) Loopback() bool {
	host, _, err := net.SplitHostPort(a.Addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Parse reads the environment. The error names every bad variable.
func Parse() (Config, error) {
	return settings.Parse[Config]("api")
}
