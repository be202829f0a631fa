package testenv

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/settings"
)

// backend is a pair of servers on which tests may create databases.
type backend struct {
	postgres   url.URL // of database postgres, as superuser
	clickhouse clickhouse.Config
	// users keeps the shared engines from being stopped while this process runs.
	users *embedded.FileLock
}

var shared = sync.OnceValues(func() (*backend, error) {
	switch kind := os.Getenv("TEST_BACKEND"); kind {
	case "", "embedded":
		return embeddedBackend()
	case "external":
		return externalBackend()
	case "containers":
		return containersBackend()
	default:
		return nil, fmt.Errorf("TEST_BACKEND=%q: set it to embedded, external or containers", kind)
	}
})

func servers(t testing.TB) *backend {
	t.Helper()
	b, err := shared()
	require.NoError(t, err, "servers for the tests")
	return b
}

// embeddedBackend has the devstack program start the engines, unless they run.
func embeddedBackend() (*backend, error) {
	ctx := context.Background() // the engines are for all tests of this process
	if err := embedded.SweepPrivate(); err != nil {
		return nil, err
	}
	devstack, err := embedded.Devstack(ctx)
	if err != nil {
		return nil, err
	}
	p, c, users, err := embedded.UseTestStack(ctx, func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, devstack, "up", "--test")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	address, err := url.Parse(p.URL("postgres"))
	if err != nil {
		return nil, err
	}
	return &backend{postgres: *address, clickhouse: c.Config("default"), users: users}, nil
}

func externalBackend() (*backend, error) {
	address, err := url.Parse(os.Getenv("DATABASE_URL"))
	if err != nil || address.Scheme == "" {
		return nil, fmt.Errorf("TEST_BACKEND=external needs DATABASE_URL=postgres://superuser:password@host:port/database")
	}
	cfg, err := settings.Parse[clickhouse.Config]("tests")
	if err != nil {
		return nil, err
	}
	return &backend{postgres: *address, clickhouse: cfg}, nil
}

// postgresURL is the address of a database on the server.
func (b *backend) postgresURL(database string) string {
	address := b.postgres
	address.Path = "/" + database
	return address.String()
}

// ClickHouseEnviron returns the environment variables that say cfg.
func ClickHouseEnviron(cfg clickhouse.Config) []string {
	return []string{
		"CLICKHOUSE_HOST=" + cfg.Host,
		"CLICKHOUSE_PORT=" + strconv.Itoa(int(cfg.Port)),
		"CLICKHOUSE_USER=" + cfg.User,
		"CLICKHOUSE_PASSWORD=" + cfg.Password,
		"CLICKHOUSE_SCHEMA=" + cfg.Database,
		"CLICKHOUSE_EVENT_LOG_TABLE_NAME=" + cfg.EventLogTable,
		"CLICKHOUSE_DEAD_LETTER_TABLE_NAME=" + cfg.DeadLetterTable,
		"CLICKHOUSE_SECURE=" + strconv.FormatBool(cfg.Secure),
		"CLICKHOUSE_CA_FILE=" + cfg.CAFile,
	}
}
