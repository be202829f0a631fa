package main

import (
	"cmp"
	"errors"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/caarlos0/env/v11"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/healthcheck"
	"diehard/shared/postgres"
	"diehard/shared/settings"
)

// databases are the settings of both databases.
type databases struct {
	Postgres   postgres.Config
	ClickHouse clickhouse.Config
}

// readDatabases reads the environment. A wrong variable is an error even for an
// embedded engine, which does not use it.
func readDatabases() (databases, error) {
	environment := env.ToMap(os.Environ())
	environment["DATABASE_URL"] = cmp.Or(environment["DATABASE_URL"], "postgres://"+embedded.Host)
	environment["CLICKHOUSE_HOST"] = cmp.Or(environment["CLICKHOUSE_HOST"], embedded.Host)
	return settings.ParseFrom[databases]("environment", environment)
}

// externalPostgres reports whether DATABASE_URL names a server of the user's, and not
// the embedded one, as after eval "$(make -s env)".
func externalPostgres() (bool, error) {
	address, err := url.Parse(os.Getenv("DATABASE_URL"))
	if err != nil || *address == (url.URL{}) {
		return err != nil, nil //nolint:nilerr // readDatabases reports a wrong value
	}
	password, _ := address.User.Password()
	own, err := isEmbedded(password)
	return !own, err
}

// externalClickHouse is the same for CLICKHOUSE_HOST.
func externalClickHouse() (bool, error) {
	if os.Getenv("CLICKHOUSE_HOST") == "" {
		return false, nil
	}
	own, err := isEmbedded(os.Getenv("CLICKHOUSE_PASSWORD"))
	return !own, err
}

// isEmbedded reports whether password is that of an engine for development.
func isEmbedded(password string) (bool, error) {
	dir, err := embedded.DevDir()
	if err != nil || password == "" {
		return false, err
	}
	dirs := []string{embedded.ClickHouseDir(dir)}
	for _, version := range embedded.PostgresVersions {
		dirs = append(dirs, embedded.PostgresDir(dir, version))
	}
	for _, dir := range dirs {
		if own, err := embedded.Password(dir); own == password || err != nil {
			return err == nil, err
		}
	}
	return false, nil
}

// runningStack returns the engines for development. One is nil if the environment
// names another server; otherwise it must run.
func runningStack() (*embedded.Stack, error) {
	if _, err := readDatabases(); err != nil {
		return nil, err
	}
	stack := &embedded.Stack{}
	external, err := externalPostgres()
	if err == nil && !external {
		stack.Postgres, err = runningPostgres()
	}
	if err != nil {
		return nil, err
	}
	external, err = externalClickHouse()
	if err == nil && !external {
		stack.ClickHouse, err = runningClickHouse()
	}
	return stack, err
}

func runningPostgres() (*embedded.Postgres, error) {
	dir, err := embedded.DevDir()
	if err != nil {
		return nil, err
	}
	for _, version := range slices.Backward(embedded.PostgresVersions) {
		if found := embedded.FindPostgres(embedded.PostgresDir(dir, version)); found != nil {
			return found, nil
		}
	}
	return nil, errors.New("PostgreSQL is not running: start it with make up (or make run), or set DATABASE_URL")
}

func runningClickHouse() (*embedded.ClickHouse, error) {
	dir, err := embedded.DevDir()
	if err != nil {
		return nil, err
	}
	found := embedded.FindClickHouse(embedded.ClickHouseDir(dir))
	if found == nil {
		return nil, errors.New("ClickHouse is not running: start it with make up (or make run), or set CLICKHOUSE_HOST")
	}
	return found, nil
}

// environFor returns our environment with the addresses of the engines of stack.
func environFor(stack *embedded.Stack) []string {
	environ := os.Environ()
	if p := stack.Postgres; p != nil {
		environ = with(environ, "DATABASE_URL="+p.URL(embedded.DevDatabase))
	}
	if c := stack.ClickHouse; c != nil {
		environ = with(environ, "CLICKHOUSE_HOST="+embedded.Host, "CLICKHOUSE_PORT="+strconv.Itoa(c.Port()),
			"CLICKHOUSE_USER=default", "CLICKHOUSE_PASSWORD="+c.Config("").Password, "CLICKHOUSE_SECURE=false")
	}
	return environ
}

// with sets variables. Each is listed once: of two, a program may take the first.
func with(environ []string, variables ...string) []string {
	for _, variable := range variables {
		name, _, _ := strings.Cut(variable, "=")
		environ = slices.DeleteFunc(environ, func(other string) bool { return strings.HasPrefix(other, name+"=") })
	}
	return append(environ, variables...)
}

// The addresses that the programs listen on by default.
func apiAddress() string {
	return healthcheck.Reachable(cmp.Or(os.Getenv("API_ADDR"), "127.0.0.1:8080"))
}

func streamerAddress() string {
	return healthcheck.Reachable(cmp.Or(os.Getenv("STREAMER_ADDR"), "127.0.0.1:8081"))
}
