package ops_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
	"diehard/streamer/batch"
	"diehard/streamer/ops"
	"diehard/streamer/pipeline"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// watched is a streamer in this process with its monitor.
type watched struct {
	t        *testing.T
	env      *testenv.Env
	monitor  *ops.Monitor
	progress *pipeline.Progress
	url      string
	begin    func() // starts the pipeline again after end
	end      func() // stops the pipeline alone
	stop     func()
}

// flushInterval of the streamers of these tests.
const flushInterval = 50 * time.Millisecond

// watch starts a streamer on env. It ends with the test, or with stop.
func watch(t *testing.T, env *testenv.Env, change ...func(*ops.Options)) *watched {
	t.Helper()
	conn := openClickHouse(t, env.ClickHouseConfig)
	pool, err := postgres.NewPool(t.Context(), postgres.Config{URL: env.PostgresURL, MaxConns: 2}, "watch")
	require.NoError(t, err)
	log := slog.New(slog.DiscardHandler)
	options := ops.Options{Addr: "127.0.0.1:0", Log: log, Environment: "Test", Shard: "1/1", Probe: &ops.Probe{
		Postgres: pool, ClickHouse: conn, Origin: replication.Origin{Slot: env.Slot, Publication: env.Publication},
		EventLog: env.ClickHouseConfig.EventLogTable, DeadLetter: env.ClickHouseConfig.DeadLetterTable,
	}}
	for _, c := range change {
		c(&options)
	}
	monitor := ops.NewMonitor(options)
	p := pipeline.New(pipeline.Config{
		PostgresURL: env.PostgresURL, Origin: replication.Origin{Slot: env.Slot, Publication: env.Publication}, SenderTimeout: 5 * time.Second,
		Tables:        sink.Tables{EventLog: options.Probe.EventLog, DeadLetter: options.Probe.DeadLetter},
		Limits:        batch.Limits{Rows: 10_000, Bytes: 4 << 20},
		FlushInterval: flushInterval, InsertTimeout: 10 * time.Second, DrainTimeout: 10 * time.Second,
	}, conn, log, monitor)
	ctx, cancel := context.WithCancel(context.Background())
	closeMonitor, err := monitor.Start(ctx, p.Progress())
	require.NoError(t, err)
	w := &watched{t: t, env: env, monitor: monitor, progress: p.Progress(), url: "http://" + monitor.Addr()}
	w.begin = func() {
		running, stopRunning := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- p.Run(running) }()
		w.end = func() {
			stopRunning()
			require.NoError(t, <-done)
		}
	}
	w.begin()
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		w.end()
		closeMonitor()
		pool.Close()
	}
	t.Cleanup(w.stop)
	return w
}

func openClickHouse(t *testing.T, cfg clickhouse.Config) clickhouse.Conn {
	t.Helper()
	options, err := clickhouse.Options(cfg)
	require.NoError(t, err)
	conn, err := clickhouse.OpenOptions(options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// get returns the answer to a request.
func (w *watched) get(path string) (code int, body string) {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.url+path, http.NoBody)
	require.NoError(w.t, err)
	request.Close = true // no idle connection outlives the test
	response, err := http.DefaultClient.Do(request)
	require.NoError(w.t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(w.t, err)
	return response.StatusCode, string(content)
}

func (w *watched) ready() (code int, r ops.Readiness) {
	w.t.Helper()
	code, body := w.get("/readyz")
	require.NoError(w.t, json.Unmarshal([]byte(body), &r))
	return code, r
}

func (w *watched) status() (s ops.Status) {
	w.t.Helper()
	code, body := w.get("/status")
	require.Equal(w.t, http.StatusOK, code)
	require.NoError(w.t, json.Unmarshal([]byte(body), &s))
	return s
}

// publish inserts n rows in one transaction.
func publish(t *testing.T, env *testenv.Env, n int) {
	t.Helper()
	_, err := env.Pool.Exec(t.Context(),
		`INSERT INTO outbox (event_type, event_context) SELECT 'watched', '{"n":1}' FROM generate_series(1, $1)`, n)
	require.NoError(t, err)
}

// refuseInserts makes ClickHouse answer "too many parts" until restore is called,
// as one that cannot keep up does.
func refuseInserts(t *testing.T, env *testenv.Env) (restore func()) {
	t.Helper()
	const limit = "parts_to_throw_insert"
	publish(t, env, 1)
	await.True(t, func() bool {
		var sent, written uint64
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM outbox").Scan(&sent))
		require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM event_log").Scan(&written))
		return written == sent
	}, "the rows before are never written")
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "ALTER TABLE event_log MODIFY SETTING "+limit+" = 1"))
	return func() {
		t.Helper()
		require.NoError(t, env.ClickHouse.Exec(t.Context(), "ALTER TABLE event_log RESET SETTING "+limit))
	}
}
