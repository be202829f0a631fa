package main

import (
	"cmp"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/caarlos0/env/v11"

	"diehard/shared/clickhouse"
	"diehard/shared/embedded"
	"diehard/shared/health"
	"diehard/shared/postgres"
	"diehard/shared/settings"
)

// databases are the settings of both.
type databases struct {
	Postgres   postgres.Config
	ClickHouse clickhouse.Config
}

// readDatabases reads the environment. An engine that runs here does not need it,
// but a wrong variable is not ignored: somebody meant something by it.
func readDatabases() (databases, error) {
	environment := env.ToMap(os.Environ())
	environment["DATABASE_URL"] = cmp.Or(environment["DATABASE_URL"], "postgres://"+embedded.Host)
	environment["CLICKHOUSE_HOST"] = cmp.Or(environment["CLICKHOUSE_HOST"], embedded.Host)
	return settings.ParseFrom[databases]("environment", environment)
}

// environFor is our environment, completed with the engines of stack.
func environFor(stack *embedded.Stack) []string {
	environ := os.Environ()
	if p := stack.Postgres; p != nil {
		environ = with(environ, "DATABASE_URL="+p.URL(embedded.DevDatabase))
	}
	if c := stack.ClickHouse; c != nil {
		environ = with(environ, "CLICKHOUSE_HOST="+embedded.Host, "CLICKHOUSE_PORT="+strconv.Itoa(c.Port()),
			"CLICKHOUSE_USER=default", "CLICKHOUSE_PASSWORD=", "CLICKHOUSE_SECURE=false")
	}
	return environ
}

// with sets variables. Each is there once: of two, a program may take the first.
func with(environ []string, variables ...string) []string {
	for _, variable := range variables {
		name, _, _ := strings.Cut(variable, "=")
		environ = slices.DeleteFunc(environ, func(other string) bool { return strings.HasPrefix(other, name+"=") })
	}
	return append(environ, variables...)
}

// Where the programs listen, as they decide it themselves.
func apiAddress() string { return health.Reachable(cmp.Or(os.Getenv("API_ADDR"), "127.0.0.1:8080")) }

func streamerAddress() string {
	return health.Reachable(cmp.Or(os.Getenv("STREAMER_ADDR"), "127.0.0.1:8081"))
}
