package replay

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/ClickHouse/ch-go/proto"
	ch "github.com/ClickHouse/clickhouse-go/v2"
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
	clickhouse.Conn // to the other node
	first           clickhouse.Conn

	mu   sync.Mutex
	held *unanswered
}

func (c *heldInsert) PrepareInsert(ctx context.Context, queryID, query string, settings ch.Settings) (clickhouse.Insert, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil || !strings.Contains(query, "event_log") {
		return c.Conn.PrepareInsert(ctx, queryID, query, settings)
	}
	insert, err := c.first.PrepareInsert(context.WithoutCancel(ctx), queryID, query, settings)
	c.held = &unanswered{insert}
	return c.held, err
}

func (c *heldInsert) release() error { return c.held.Send() }

// unanswered keeps a block whose sender hears nothing of it.
type unanswered struct{ clickhouse.Insert }

func (u *unanswered) SendBlock(columns []proto.InputColumn) error {
	kept := u.Columns()
	for i, c := range columns {
		var b proto.Buffer
		c.Data.EncodeColumn(&b)
		if err := kept[i].Decode(b.Reader(), c.Data.Rows()); err != nil {
			return err
		}
	}
	return io.ErrUnexpectedEOF
}

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
func replicated(t *testing.T, f *fixture) (nodes []clickhouse.Conn) {
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
