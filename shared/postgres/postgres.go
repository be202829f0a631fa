// Package postgres connects to PostgreSQL the same way everywhere.
package postgres

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	connectTimeout  = 5 * time.Second
	maxConnLifetime = time.Hour
	maxConnIdleTime = 10 * time.Minute
)

// Config says which server to use and how many connections to keep.
type Config struct {
	// URL is a connection string, postgres://user:password@host:port/database?sslmode=verify-full
	// or key=value pairs.
	URL string `env:"DATABASE_URL,required" secret:"true" example:"postgres://postgres@127.0.0.1:15432/diehard" doc:"connection string of PostgreSQL, postgres://user:password@host:port/database"`
	// MaxConns bounds the pool, at least 1.
	MaxConns int32 `env:"DATABASE_MAX_CONNS" envDefault:"16" min:"1" doc:"most connections of one process to PostgreSQL"`
}

// Validate refuses a connection string that no server could be found with.
func (c Config) Validate() error {
	if _, err := pgxpool.ParseConfig(c.URL); err != nil {
		return badURL(err)
	}
	return nil
}

var quotedPart = regexp.MustCompile(`"[^" =]+"`)

// badURL says what is wrong with a connection string without repeating any of
// it: in one that cannot be read, nobody can tell where the password is.
func badURL(err error) error {
	_, problem, _ := strings.Cut(err.Error(), "`: ") // "cannot parse `string`: problem (cause)"
	return fmt.Errorf("DATABASE_URL: %s; expected: postgres://user:password@host:port/database, "+
		"special characters of the password as %%40 for @", quotedPart.ReplaceAllString(problem, `"…"`))
}

// NewPool makes a pool that connects when first used, so that a program can
// start, and say so, while the server is away. appName is shown in
// pg_stat_activity. An error is a mistake in cfg and carries no password.
func NewPool(ctx context.Context, cfg Config, appName string) (*pgxpool.Pool, error) {
	poolConfig, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, badURL(err)
	}
	setDefaults(poolConfig.ConnConfig, appName)
	if cfg.MaxConns > 0 {
		poolConfig.MaxConns = cfg.MaxConns
	}
	poolConfig.MaxConnLifetime = maxConnLifetime
	poolConfig.MaxConnLifetimeJitter = maxConnLifetime / 10
	poolConfig.MaxConnIdleTime = maxConnIdleTime
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, Redact(fmt.Errorf("connect to PostgreSQL: %w", err))
	}
	return pool, nil
}

// ParseConfig reads a connection string for one connection of its own, with
// the same time limits and name as those of [NewPool].
func ParseConfig(url, appName string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, badURL(err)
	}
	setDefaults(config, appName)
	return config, nil
}

// Connect opens one connection with the settings of [ParseConfig]. The error carries no password.
func Connect(ctx context.Context, url, appName string) (*pgx.Conn, error) {
	config, err := ParseConfig(url, appName)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", Redact(err))
	}
	return conn, nil
}

// setDefaults fills what the connection string leaves open.
func setDefaults(config *pgx.ConnConfig, appName string) {
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = appName
	}
}
