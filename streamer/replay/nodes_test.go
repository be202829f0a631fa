package replay

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// heldInsert is a connection through two nodes. The block of the first insert into event_log
// stays under way to the first node, as behind a network that stalls, until release; what
// comes after it goes to the other node, which does not know of it.
type heldInsert struct {
	driver.Conn // to the other node
	first       driver.Conn

	mu   sync.Mutex
	held driver.Batch
}

func (c *heldInsert) PrepareBatch(ctx context.Context, query string, opts ...driver.PrepareBatchOption) (driver.Batch, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil || !strings.Contains(query, "event_log") {
		return c.Conn.PrepareBatch(ctx, query, opts...)
	}
	var err error
	c.held, err = c.first.PrepareBatch(context.WithoutCancel(ctx), query, opts...)
	return unanswered{c.held}, err
}

func (c *heldInsert) release() error { return c.held.Send() }

type unanswered struct{ driver.Batch }

func (unanswered) Send() error { return io.ErrUnexpectedEOF }

// An insert whose answer is lost may still be written, by a node that is not asked.
func TestReplayRepeatsAnInsertThroughAnotherNode(t *testing.T) {
	for name, replay := range map[string]func(context.Context, Config) error{
		"from the table": func(ctx context.Context, c Config) error { _, err := FromTable(ctx, c, Span{}, Mode{}); return err },
		"from the WAL": func(ctx context.Context, c Config) error {
			_, err := FromWAL(ctx, c, Range{Bookmark: "b"}, Mode{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			nodes := replicated(t, f)
			f.stream()
			f.bookmark("b")
			f.confirmed(f.publish("a", 300))
			f.remove("true")
			c, held := f.config(), &heldInsert{Conn: nodes[1], first: nodes[0]}
			c.ClickHouse = held
			require.NoError(t, replay(t.Context(), c))
			require.NoError(t, held.release())
			assert.Equal(t, 300, f.count("event_log", "true"))
			f.complete()
		})
	}
}

// replicated gives f a ClickHouse of its own with two listeners, and returns a connection through each.
func replicated(t *testing.T, f *fixture) (nodes []driver.Conn) {
	t.Helper()
	configs := testenv.StartClickHouse(t, embedded.ClickHouseOptions{Replicas: 1}).ReplicaConfigs("default")
	require.NoError(t, migrations.UpClickHouse(t.Context(), configs[0], slog.New(slog.DiscardHandler)))
	for _, config := range configs {
		node, err := clickhouse.Open(t.Context(), config)
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, node.Close()) })
		nodes = append(nodes, node)
	}
	env := *f.Env
	env.ClickHouse = nodes[0]
	f.Env = &env
	return nodes
}
