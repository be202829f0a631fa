//go:build containers

package testenv

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"diehard/shared/clickhouse"
	"diehard/shared/embedded"
)

const (
	clickhouseImage = "clickhouse/clickhouse-server:26.7"
	imagePatience   = 5 * time.Minute // a first pull is slow
)

// containersBackend runs both servers in Docker. All test programs of a go test
// share them by name; Docker's reaper removes them after the last one.
func containersBackend() (*backend, error) {
	ctx := context.Background() // the containers are for all tests of this process
	version := embedded.PostgresVersion()
	postgres, err := testcontainers.Run(ctx, "postgres:"+version,
		testcontainers.WithReuseByName("diehard-test-postgres-"+version),
		testcontainers.WithEnv(map[string]string{"POSTGRES_HOST_AUTH_METHOD": "trust"}),
		testcontainers.WithExposedPorts("5432/tcp"),
		testcontainers.WithCmd(postgresCommand()...),
		// The image starts a server twice: the first one only initialises.
		testcontainers.WithWaitStrategyAndDeadline(imagePatience,
			wait.ForLog("database system is ready to accept connections").WithOccurrence(2)),
	)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL in Docker: %w", err)
	}
	server, err := testcontainers.Run(ctx, clickhouseImage,
		testcontainers.WithReuseByName("diehard-test-clickhouse"),
		testcontainers.WithEnv(map[string]string{"CLICKHOUSE_SKIP_USER_SETUP": "1"}),
		testcontainers.WithExposedPorts("9000/tcp"),
		testcontainers.WithWaitStrategyAndDeadline(imagePatience, wait.ForListeningPort("9000/tcp")),
	)
	if err != nil {
		return nil, fmt.Errorf("start ClickHouse in Docker: %w", err)
	}
	postgresHost, postgresPort, err := address(ctx, postgres, "5432/tcp")
	if err != nil {
		return nil, err
	}
	host, port, err := address(ctx, server, "9000/tcp")
	if err != nil {
		return nil, err
	}
	return &backend{
		postgres: url.URL{
			Scheme: "postgres", User: url.User("postgres"), Path: "/postgres", RawQuery: "sslmode=disable",
			Host: postgresHost + ":" + strconv.Itoa(int(postgresPort)),
		},
		clickhouse: clickhouse.Config{
			Host: host, Port: port, User: "default", Database: "default",
			EventLogTable: "event_log", DeadLetterTable: "event_dead_letter",
		},
	}, nil
}

func postgresCommand() []string {
	command := []string{"postgres", "-c", "wal_level=logical"}
	for name, value := range embedded.TestSettings() {
		command = append(command, "-c", name+"="+value)
	}
	return command
}

// address is where a container's port is reached from here.
func address(ctx context.Context, c testcontainers.Container, inside string) (host string, port uint16, err error) {
	if host, err = c.Host(ctx); err != nil {
		return "", 0, err
	}
	mapped, err := c.MappedPort(ctx, inside)
	if err != nil {
		return "", 0, err
	}
	return host, uint16(mapped.Num()), nil
}
