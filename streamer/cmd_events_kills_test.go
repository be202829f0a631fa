package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	chconfig "diehard/shared/clickhouse"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// killedStreamer publishes events and streams them, and kills the streamer whenever kill is called.
func killedStreamer(t *testing.T, env *testenv.Env, program string) (kill, stop func()) {
	t.Helper()
	start := func() *exec.Cmd {
		cmd := exec.Command(program, "run")
		cmd.Env = append(env.Environ(), "STREAMER_ADDR=127.0.0.1:0", "CLICKHOUSE_FLUSH_INTERVAL=20ms", "REPLICATION_SENDER_TIMEOUT=2s")
		require.NoError(t, cmd.Start())
		return cmd
	}
	running := start()
	t.Cleanup(func() { _ = running.Process.Kill(); _ = running.Wait() })
	await.True(t, func() bool {
		var exists bool
		err := env.Pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn IS NOT NULL)", env.Slot).Scan(&exists)
		return err == nil && exists
	}, "the slot exists")
	stop = produceEvents(t, env, 7)
	await.True(t, func() bool { rows, _ := eventLog(t, env); return rows > 0 }, "the first events are there")
	return func() {
		require.NoError(t, running.Process.Kill())
		_ = running.Wait() // it was killed
		running = start()
	}, stop
}

// committed is the number of events.
func committed(t *testing.T, env *testenv.Env) (n int) {
	t.Helper()
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM outbox").Scan(&n))
	return n
}

// A program that stores the position of the last event gets every event once, through kills
// of its own and of the streamer.
func TestAConsumerThatIsKilledAHundredTimesSeesEveryEventOnce(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	program := testenv.Build(t, "streamer")
	kill, stop := killedStreamer(t, env, program)
	c := &consumer{position: "0/0/0"}
	for n := range 100 {
		c.run(t, env, program, 1+rand.N(100))
		if n%25 == 24 {
			kill()
		}
	}
	stop()
	deliver(t, env, 1)
	for _, e := range shownEvents(t, "--after", c.position, "--limit", "0") {
		line, err := json.Marshal(e)
		require.NoError(t, err)
		c.stored.Write(append(line, '\n'))
	}
	seen := map[uuid.UUID]int{}
	for line := range strings.Lines(c.stored.String()) {
		var e eventJSON
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		seen[e.EventID]++
		assert.Equal(t, 1, seen[e.EventID], "twice: %s", e.Position)
	}
	assert.Len(t, seen, committed(t, env), "every event")
	assert.Greater(t, len(seen), 1000)
}

// sqlConsumer asks what streamer/README.md shows. What it has stored outlives it.
type sqlConsumer struct {
	query, source string
	ids           []uuid.UUID
	lsn           uint64 // with seq, the position of the last of them
	seq           uint32
}

// page handles the next events until ctx ends, and reports whether there were any.
func (c *sqlConsumer) page(ctx context.Context, conn clickhouse.Conn, span uint64) (any bool, err error) {
	rows, err := conn.Query(ctx, c.query, clickhouse.Named("source", c.source), clickhouse.Named("lsn", strconv.FormatUint(c.lsn, 10)),
		clickhouse.Named("seq", strconv.FormatUint(uint64(c.seq), 10)), clickhouse.Named("span", strconv.FormatUint(span, 10)))
	if err != nil {
		return false, err
	}
	defer rows.Close()
	for rows.Next() {
		var e struct {
			ID  uuid.UUID `ch:"event_id"`
			LSN uint64    `ch:"commit_lsn"`
			Seq uint32    `ch:"commit_seq"`
		}
		if err := rows.ScanStruct(&e); err != nil || ctx.Err() != nil {
			return any, err
		}
		c.ids, c.lsn, c.seq, any = append(c.ids, e.ID), e.LSN, e.Seq, true // one transaction
	}
	return any, rows.Err()
}

// live consumes until ctx ends, or until there is nothing more if untilEnd.
func (c *sqlConsumer) live(ctx context.Context, t *testing.T, env *testenv.Env, untilEnd bool) {
	t.Helper()
	conn, err := chconfig.Open(t.Context(), env.ClickHouseConfig)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }() // what was killed may be closed
	for ctx.Err() == nil {
		found := false
		for _, span := range []uint64{16 << 20, 16 << 30, 1 << 62} {
			if found, err = c.page(ctx, conn, span); found || ctx.Err() != nil {
				break
			}
			require.NoError(t, err)
		}
		if !found && untilEnd {
			return
		}
	}
}

// The SQL of the README does the same as the command.
func TestTheSQLOfTheREADMEIsALogThroughKills(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	kill, stop := killedStreamer(t, env, testenv.Build(t, "streamer"))
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, query, found := strings.Cut(string(readme), "<!-- tested: consumer -->\n```sql\n")
	require.True(t, found)
	query, _, _ = strings.Cut(query, "```")
	query = strings.Replace(query, "SELECT *", "SELECT event_id, commit_lsn, commit_seq", 1)
	c := &sqlConsumer{query: query}
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT DISTINCT source FROM event_log").Scan(&c.source))
	for n := range 100 {
		ctx, end := context.WithCancel(t.Context())
		time.AfterFunc(time.Duration(rand.N(100_000))*time.Microsecond, end)
		c.live(ctx, t, env, false)
		if n%25 == 24 {
			kill()
		}
	}
	stop()
	deliver(t, env, 1)
	c.live(t.Context(), t, env, true)
	seen := map[uuid.UUID]bool{}
	for _, id := range c.ids {
		assert.False(t, seen[id], "twice: %s", id)
		seen[id] = true
	}
	assert.Len(t, seen, committed(t, env), "every event")
	assert.Greater(t, len(seen), 1000)
}
