package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sync/errgroup"
)

// DevDatabase is the PostgreSQL database for development.
const DevDatabase = "diehard"

// Ports of the engines for development, unless the environment says otherwise.
const (
	DefaultPostgresPort   = 15432
	DefaultClickHousePort = 19000
)

// Stack is a PostgreSQL and a ClickHouse. One that was not asked for is nil.
type Stack struct {
	Postgres   *Postgres
	ClickHouse *ClickHouse
}

// StackOptions says which engines to start. Nil options start none of that kind.
type StackOptions struct {
	Postgres   *PostgresOptions
	ClickHouse *ClickHouseOptions
}

// PostgresDir is where the data of a major version is kept in dir.
func PostgresDir(dir, version string) string { return filepath.Join(dir, "postgres-"+version) }

// ClickHouseDir is where ClickHouse's data is kept in dir.
func ClickHouseDir(dir string) string { return filepath.Join(dir, "clickhouse") }

// DevOptions are the engines of make up: in DevDir, on the ports of
// EMBEDDED_POSTGRES_PORT and EMBEDDED_CLICKHOUSE_PORT, with database DevDatabase.
func DevOptions(log LogFunc) (StackOptions, error) {
	dir, err := DevDir()
	if err != nil {
		return StackOptions{}, err
	}
	postgresPort, errP := portFrom(postgresPortVar, DefaultPostgresPort)
	clickhousePort, errC := portFrom(clickhousePortVar, DefaultClickHousePort)
	if err := errors.Join(errP, errC); err != nil {
		return StackOptions{}, err
	}
	return StackOptions{
		Postgres:   &PostgresOptions{DataDir: PostgresDir(dir, PostgresVersion()), Port: postgresPort, Database: DevDatabase, Log: log},
		ClickHouse: &ClickHouseOptions{DataDir: ClickHouseDir(dir), Port: clickhousePort, Log: log},
	}, nil
}

func portFrom(variable string, fallback int) (int, error) {
	text := os.Getenv(variable)
	if text == "" {
		return fallback, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%s=%q is not a port: set it to a number from 1 to 65535", variable, text)
	}
	return int(port), nil
}

// StartStack starts both engines at the same time. What did start keeps running
// when the other fails.
func StartStack(ctx context.Context, opts StackOptions) (*Stack, error) {
	var stack Stack
	var both errgroup.Group
	if opts.Postgres != nil {
		both.Go(func() (err error) {
			stack.Postgres, err = StartPostgres(ctx, *opts.Postgres)
			return err
		})
	}
	if opts.ClickHouse != nil {
		both.Go(func() (err error) {
			stack.ClickHouse, err = StartClickHouse(ctx, *opts.ClickHouse)
			return err
		})
	}
	return &stack, both.Wait()
}

// Engine is a running engine of either kind.
type Engine interface {
	Name() string
	Port() int
	PID() int
	Stop(ctx context.Context) error
	Kill() error
}

// FindEngines returns what runs in dir: every version of PostgreSQL, and ClickHouse.
func FindEngines(dir string) []Engine {
	var found []Engine
	for _, version := range PostgresVersions {
		if p := FindPostgres(PostgresDir(dir, version)); p != nil {
			found = append(found, p)
		}
	}
	if c := FindClickHouse(ClickHouseDir(dir)); c != nil {
		found = append(found, c)
	}
	return found
}

// StopEngines stops what runs in dir and returns what it stopped.
func StopEngines(ctx context.Context, dir string) ([]Engine, error) {
	var errs []error
	found := FindEngines(dir)
	for _, engine := range found {
		errs = append(errs, engine.Stop(ctx))
	}
	return found, errors.Join(errs...)
}
