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

// Config holds the api's settings.
type Config struct {
	Access          Access
	RequestTimeout  time.Duration  `env:"API_REQUEST_TIMEOUT" envDefault:"5s" min:"1ms" doc:"timeout of a request, without its body; after it the answer is 503"`
	StreamTimeout   time.Duration  `env:"API_STREAM_TIMEOUT" envDefault:"1m" min:"1ms" doc:"timeout of an NDJSON request, whose transaction is open while the body arrives"`
	HeaderTimeout   time.Duration  `env:"API_HEADER_TIMEOUT" envDefault:"5s" min:"1ms" doc:"timeout for receiving the header of a request"`
	BodyTimeout     time.Duration  `env:"API_BODY_TIMEOUT" envDefault:"10s" min:"1ms" doc:"timeout without a byte of a body"`
	BodyMinRate     settings.Bytes `env:"API_BODY_MIN_RATE" envDefault:"8KiB" min:"0" doc:"average rate per second in which a body must arrive after API_BODY_TIMEOUT; 0 for any"`
	MaxBodyBytes    settings.Bytes `env:"API_MAX_BODY_BYTES" envDefault:"32MiB" min:"2MiB" doc:"size of all JSON bodies in memory; beyond it the answer is 429; memory is about four times as much and 64 MiB"`
	MaxRequests     int            `env:"API_MAX_REQUESTS" envDefault:"256" min:"1" doc:"maximum number of requests in progress, without NDJSON; the next one is answered with 503, and with 429 if one caller has half of them"`
	RateLimit       float64        `env:"API_RATE_LIMIT" envDefault:"0" min:"0" doc:"maximum requests per second of one key, or of one address where there are no keys; 0 for no limit"`
	ShutdownTimeout time.Duration  `env:"SHUTDOWN_TIMEOUT" envDefault:"30s" min:"1s" doc:"timeout of a graceful stop after SIGTERM or SIGINT"`

	Postgres postgres.Config
	Log      telemetry.LogConfig
	Sentry   telemetry.SentryConfig
}

// Access says who may reach the api.
type Access struct {
	Addr        string   `env:"API_ADDR" envDefault:"127.0.0.1:8080" form:"address" doc:"address and port on which the api listens; :8080 is every address"`
	Keys        []string `env:"API_KEYS" secret:"true" doc:"SHA-256 hashes of the callers' keys, name:hash or hash, separated by commas (make one: api key NAME); may be empty only if API_ADDR is a loopback address or API_OPEN is true"`
	Open        bool     `env:"API_OPEN" envDefault:"false" doc:"true lets every client that reaches API_ADDR publish without a key, if API_KEYS is empty"`
	MetricsAddr string   `env:"API_METRICS_ADDR" form:"address" doc:"address and port on which /metrics is served to every client; empty: at API_ADDR alone, to this machine or with a key"`
	Hosts       []string `env:"API_HOSTS" doc:"names, separated by commas, that requests may have as Host beside localhost and loopback addresses, if API_ADDR is a loopback address and API_KEYS is empty; others are answered with 421; empty for no other names"`
	Environment string   `env:"ENVIRONMENT" envDefault:"Local" doc:"name of this installation: in logs and Sentry, and stored with events that the api publishes without an environment"`
}

// Validate refuses an api that is open by oversight.
func (a Access) Validate() error {
	if _, err := keys.Parse(a.Keys); err != nil {
		return fmt.Errorf("API_KEYS: %w; make one with: api key NAME", err)
	}
	if len(a.Keys) == 0 && !a.Open && !a.Loopback() {
		return errors.New("API_KEYS is not set, but API_ADDR = \"" + a.Addr + "\" can be reached from elsewhere; " +
			"make a key with: api key NAME, or set API_ADDR to 127.0.0.1, or API_OPEN to true if every client may publish")
	}
	return nil
}

// Loopback reports whether the api listens on a loopback address only.
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
