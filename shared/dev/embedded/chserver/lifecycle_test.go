package chserver_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded/chserver"
)

func TestDataSurvivesKill(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	conn := s.open(nil)
	require.NoError(t, conn.Exec(t.Context(), eventLog))
	require.NoError(t, sendEvents(t.Context(), conn, 0, 1000))
	waiting, err := conn.PrepareBatch(t.Context(), "INSERT INTO event_log (commit_lsn)")
	require.NoError(t, err)
	require.NoError(t, waiting.Append(uint64(1)))
	require.NoError(t, waiting.Flush())

	require.NoError(t, s.cmd.Process.Kill())
	_ = s.cmd.Wait()
	s.start()
	conn = s.open(nil)
	require.Equal(t, uint64(1000), count(t, conn, "event_log"))
	require.NoError(t, sendEvents(t.Context(), conn, 1000, 1000))
	require.Equal(t, uint64(2000), count(t, conn, "event_log"))
}

// SIGTERM ends the server soon, also with clients connected and queries running.
func TestTerminationIsPrompt(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	conn := s.open(nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE t (a UInt64) ENGINE MergeTree ORDER BY a"))
	require.NoError(t, insertNumber(t.Context(), conn, "t", 1))
	_, err := conn.PrepareBatch(t.Context(), "INSERT INTO t")
	require.NoError(t, err)
	query := make(chan error, 1)
	id := uniqueID("long")
	go func() {
		ctx := clickhouse.Context(context.Background(), clickhouse.WithQueryID(id))
		query <- conn.Exec(ctx, "SELECT sleepEachRow(1) FROM numbers(600) SETTINGS max_block_size = 1")
	}()
	await.True(t, func() bool { return runningQueries(t, conn, id) == 1 }, "the query runs")

	require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
	ended := make(chan error, 1)
	go func() { ended <- s.cmd.Wait() }()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("the server ignores SIGTERM")
	}
	require.Error(t, <-query)
	s.start()
	require.Equal(t, uint64(1), count(t, s.open(nil), "t"))
}

// Signals mean to the process what they mean to Go: SIGQUIT prints goroutines,
// also when the kernel hands it to one of the library's threads.
func TestSignalHandlersStayGo(t *testing.T) {
	t.Parallel()
	for name, library := range map[string]bool{"to the process": false, "to a thread of the library": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t)
			require.NoError(t, s.open(nil).Exec(t.Context(), "SELECT 1"))
			pid := s.cmd.Process.Pid
			if library {
				require.NoError(t, unix.Tgkill(pid, libraryThread(t, pid), unix.SIGQUIT))
			} else {
				require.NoError(t, unix.Kill(pid, unix.SIGQUIT))
			}
			require.EqualError(t, s.cmd.Wait(), "exit status 2")
			require.Contains(t, s.log.String(), "SIGQUIT: quit")
			require.Contains(t, s.log.String(), "goroutine ")
		})
	}
}

// libraryThread returns a thread of the process that the ClickHouse library made
// for itself: those carry names of their own.
func libraryThread(t *testing.T, pid int) (tid int) {
	t.Helper()
	nameOf := func(tid int) string {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/comm", pid, tid))
		require.NoError(t, err)
		return string(name)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(t, err)
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		require.NoError(t, err)
		if nameOf(tid) != nameOf(pid) {
			return tid
		}
	}
	require.Fail(t, "the library has no threads")
	return 0
}

func TestStartFailuresSayWhy(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	err := chserver.Serve(t.Context(), chserver.Options{Addr: s.addr, DataDir: t.TempDir(), LibPath: "unused"})
	require.ErrorContains(t, err, "address already in use")
	err = chserver.Serve(t.Context(), chserver.Options{Addr: freeAddr(t), DataDir: t.TempDir() + "/new", LibPath: t.TempDir() + "/absent.so"})
	require.ErrorContains(t, err, "load ClickHouse library")

	second := &instance{t: t, dataDir: s.dataDir, addr: freeAddr(t)}
	second.launch()
	require.Error(t, second.cmd.Wait(), "one data directory serves one process")
	require.Contains(t, second.log.String(), "data directory")
	require.NoError(t, s.open(nil).Ping(t.Context()))
}

// Migrations as the project runs them: goose over database/sql, whose version
// table is written with inline values.
func TestGooseMigrations(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	var database string
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT currentDatabase()").Scan(&database))
	db := clickhouse.OpenDB(sharedServer(t).options(func(o *clickhouse.Options) { o.Auth.Database = database }))
	defer db.Close()
	migrations := fstest.MapFS{
		"001_event_log.sql": {Data: []byte("-- +goose NO TRANSACTION\n-- +goose Up\n" + eventLog + ";\n-- +goose Down\nDROP TABLE event_log;\n")},
		"002_more.sql":      {Data: []byte("-- +goose NO TRANSACTION\n-- +goose Up\nALTER TABLE event_log ADD COLUMN extra String;\n-- +goose Down\nSELECT 1;\n")},
	}
	migrate(t, db, migrations, 2)
	migrate(t, db, migrations, 0)
	require.Zero(t, count(t, conn, "event_log"))
	require.Equal(t, uint64(3), count(t, conn, "goose_db_version"))
}

func migrate(t *testing.T, db *sql.DB, files fstest.MapFS, want int) {
	t.Helper()
	provider, err := goose.NewProvider(goose.DialectClickHouse, db, files)
	require.NoError(t, err)
	results, err := provider.Up(t.Context())
	require.NoError(t, err)
	require.Len(t, results, want)
}

// Nothing of what clients insert shows in the log.
func TestLogHasNoPayloads(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	conn := s.open(nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE t (a String) ENGINE MergeTree ORDER BY a"))
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO t")
	require.NoError(t, err)
	require.NoError(t, batch.Append("payload-of-a-client"))
	require.NoError(t, batch.Flush())
	require.NoError(t, batch.Abort())
	require.NoError(t, conn.Exec(t.Context(), "INSERT INTO t VALUES ('payload-of-a-client')"))
	require.NoError(t, s.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, s.cmd.Wait())
	require.NotContains(t, s.log.String(), "payload-of-a-client")
	require.Equal(t, 1, strings.Count(s.log.String(), "embedded ClickHouse is ready"))
}
