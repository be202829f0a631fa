//go:build containers

package testenv

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
)

const (
	// As in docker-compose.yml.
	defaultClickHouseImage = "clickhouse/clickhouse-server:26.3"
	// checkoutLabel has the path of the checkout: make test-containers removes
	// what bears its own.
	checkoutLabel = "diehard.checkout"

	imageTimeout  = 5 * time.Minute // a first pull is slow
	dialTimeout   = 3 * time.Second
	dockerTimeout = 30 * time.Second
)

// containersBackend runs both servers in Docker. All test programs of the
// checkout share them by name, and the next run finds them again.
func containersBackend() (*backend, error) {
	ctx := context.Background() // the containers are for all tests of this process
	// The reaper of testcontainers removes what no program is connected for: it may
	// do so between two test programs, and while the second one starts.
	if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
		return nil, err
	}
	if err := dockerAnswers(ctx); err != nil {
		return nil, fmt.Errorf("TEST_BACKEND=containers needs Docker, which does not answer: "+
			"start it, or set DOCKER_HOST; or leave TEST_BACKEND out for the embedded engines: %w", err)
	}
	checkout, err := checkout()
	if err != nil {
		return nil, err
	}
	postgresImage := cmp.Or(os.Getenv("POSTGRES_IMAGE"), "postgres:"+embedded.PostgresVersion())
	postgres, err := testcontainers.Run(ctx, postgresImage,
		testcontainers.WithReuseByName(containerName(postgresImage, checkout)),
		testcontainers.WithLabels(map[string]string{checkoutLabel: checkout}),
		testcontainers.WithEnv(map[string]string{"POSTGRES_HOST_AUTH_METHOD": "trust"}),
		testcontainers.WithExposedPorts("5432/tcp"),
		testcontainers.WithCmd(postgresCommand()...),
		// The image starts a server twice: the first one only initialises.
		testcontainers.WithWaitStrategyAndDeadline(imageTimeout,
			wait.ForLog("database system is ready to accept connections").WithOccurrence(2)),
	)
	if err != nil {
		return nil, fmt.Errorf("start %s in Docker (choose another with POSTGRES_IMAGE): %w", postgresImage, err)
	}
	clickhouseImage := cmp.Or(os.Getenv("CLICKHOUSE_IMAGE"), defaultClickHouseImage)
	server, err := testcontainers.Run(ctx, clickhouseImage,
		testcontainers.WithReuseByName(containerName(clickhouseImage, checkout)),
		testcontainers.WithLabels(map[string]string{checkoutLabel: checkout}),
		testcontainers.WithEnv(map[string]string{"CLICKHOUSE_SKIP_USER_SETUP": "1"}),
		testcontainers.WithExposedPorts("9000/tcp"),
		testcontainers.WithWaitStrategyAndDeadline(imageTimeout, wait.ForListeningPort("9000/tcp").SkipExternalCheck()),
	)
	if err != nil {
		return nil, fmt.Errorf("start %s in Docker (choose another with CLICKHOUSE_IMAGE): %w", clickhouseImage, err)
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

// dockerAnswers asks the engine before anything else does: the library has no
// time limit of its own, and panics where it finds no engine at all.
func dockerAnswers(ctx context.Context) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%v", cause)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return err
	}
	return provider.Health(ctx) // closes the provider
}

// checkout is the path of this one, as make has it.
func checkout() (string, error) {
	root, err := embedded.Root()
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(root)
}

var noName = regexp.MustCompile(`[^a-zA-Z0-9_.-]+`)

// containerName has the image and the checkout in it: another image, like another
// checkout, has a container of its own.
func containerName(image, checkout string) string {
	sum := sha256.Sum256([]byte(checkout))
	return "diehard-test-" + noName.ReplaceAllString(image, "-") + "-" + hex.EncodeToString(sum[:4])
}

func postgresCommand() []string {
	command := []string{"postgres", "-c", "wal_level=logical"}
	for name, value := range embedded.TestSettings() {
		command = append(command, "-c", name+"="+value)
	}
	return command
}

// address is where a container's port is reached from here: as Docker publishes it,
// on the loopback interface if this process shares the network of Docker's machine
// from inside of a container, or by the address of the container itself.
func address(ctx context.Context, c testcontainers.Container, inside string) (host string, port uint16, err error) {
	mapped, err := c.MappedPort(ctx, inside)
	if err != nil {
		return "", 0, err
	}
	published := strconv.Itoa(int(mapped.Num()))
	candidates := []string{net.JoinHostPort("127.0.0.1", published)}
	if daemon, err := c.Host(ctx); err == nil {
		candidates = append([]string{net.JoinHostPort(daemon, published)}, candidates...)
	}
	if ip, err := c.ContainerIP(ctx); err == nil && ip != "" {
		own, _, _ := strings.Cut(inside, "/")
		candidates = append(candidates, net.JoinHostPort(ip, own))
	}
	for _, candidate := range candidates {
		if reachable(ctx, candidate) {
			host, text, _ := net.SplitHostPort(candidate)
			number, err := strconv.ParseUint(text, 10, 16)
			return host, uint16(number), err
		}
	}
	return "", 0, fmt.Errorf("port %s of the container is reached at none of %s", inside, strings.Join(candidates, ", "))
}

func reachable(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
