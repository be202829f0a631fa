package chserver_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

func TestInsertColumns(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	ctx := t.Context()
	require.NoError(t, conn.Exec(ctx, "CREATE TABLE c (a UInt64, `b c` String DEFAULT 'default', m UInt64 MATERIALIZED a * 2, l UInt64 ALIAS a * 3, `n.x` Array(UInt8)) ENGINE MergeTree ORDER BY a"))
	for sql, values := range map[string][]any{
		"INSERT INTO c":                                   {uint64(1), "x", []uint8{1}},
		"INSERT INTO c VALUES":                            {uint64(2), "x", []uint8{1}},
		"INSERT INTO TABLE c (a) FORMAT Native":           {uint64(3)},
		"INSERT INTO c (`b c`, a)":                        {"x", uint64(4)},
		"INSERT INTO c (a, n.x) SETTINGS max_threads = 1": {uint64(5), []uint8{1, 2}},
		"INSERT INTO default.c (a)":                       {uint64(6)},
	} {
		batch, err := conn.PrepareBatch(ctx, sql)
		if sql == "INSERT INTO default.c (a)" {
			requireCode(t, err, 60) // the table is in the test's database
			continue
		}
		require.NoError(t, err, sql)
		require.NoError(t, batch.Append(values...), sql)
		require.NoError(t, batch.Send(), sql)
	}
	require.Equal(t, uint64(5), count(t, conn, "c"))
	var sum, double uint64
	require.NoError(t, conn.QueryRow(ctx, "SELECT sum(a), sum(m) FROM c").Scan(&sum, &double))
	require.Equal(t, uint64(15), sum)
	require.Equal(t, 2*sum, double)
}

// All blocks of one INSERT become one part, as on a server.
func TestInsertOfManyBlocksIsOnePart(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	ctx := t.Context()
	require.NoError(t, conn.Exec(ctx, "CREATE TABLE b (a UInt64, s LowCardinality(String)) ENGINE MergeTree ORDER BY a"))
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO b")
	require.NoError(t, err)
	for block := range 5 {
		for i := range 1000 {
			require.NoError(t, batch.Append(uint64(i), fmt.Sprintf("block %d", block)))
		}
		require.NoError(t, batch.Flush())
	}
	require.NoError(t, batch.Send())
	var parts, rows uint64
	require.NoError(t, conn.QueryRow(ctx, "SELECT count(), sum(rows) FROM system.parts WHERE active AND database = currentDatabase() AND table = 'b'").Scan(&parts, &rows))
	require.Equal(t, uint64(5000), rows)
	require.Equal(t, uint64(1), parts)
}

func TestInsertWithoutRows(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE e (a UInt64) ENGINE MergeTree ORDER BY a"))
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO e")
	require.NoError(t, err)
	require.NoError(t, batch.Send())
	require.Zero(t, count(t, conn, "e"))
}

func TestDeduplicationTokenIsHonoured(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE d (a UInt64) ENGINE MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100"))
	insert := func(token string, a uint64) {
		ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{
			"async_insert": 0, "insert_deduplication_token": token,
		}))
		require.NoError(t, insertNumber(ctx, conn, "d", a))
	}
	insert("one", 1)
	insert("one", 1)
	insert("two", 1)
	insert("one", 2)
	require.Equal(t, uint64(2), count(t, conn, "d"))
}

// With asynchronous inserts, ClickHouse's default, the rows are there when Send returns.
func TestAsyncInsert(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE a (a UInt64) ENGINE MergeTree ORDER BY a"))
	ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"async_insert": 1, "wait_for_async_insert": 1}))
	require.NoError(t, insertNumber(ctx, conn, "a", 1))
	require.Equal(t, uint64(1), count(t, conn, "a"))
}

// Rows of a client that goes away before it has ended its INSERT are not inserted.
func TestClientGoesAwayInTheMiddleOfAnInsert(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE g (a UInt64) ENGINE MergeTree ORDER BY a"))
	id := uniqueID("leaving")
	ctx := clickhouse.Context(t.Context(), clickhouse.WithQueryID(id))
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO g")
	require.NoError(t, err)
	for i := range 100000 {
		require.NoError(t, batch.Append(uint64(i)))
	}
	require.NoError(t, batch.Flush()) // sends a whole block
	require.Equal(t, uint64(1), runningQueries(t, conn, id))
	require.NoError(t, batch.Abort()) // closes the connection
	await.True(t, func() bool { return runningQueries(t, conn, id) == 0 }, "the query ends")
	require.Zero(t, count(t, conn, "g"))
}

const eventLog = `CREATE TABLE event_log (
	event_id UUID CODEC(ZSTD(1)), event_type LowCardinality(String), event_date_time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
	environment LowCardinality(String), event_context String CODEC(ZSTD(3)), metadata_version UInt64,
	source LowCardinality(String), commit_lsn UInt64 CODEC(Delta(8), ZSTD(1)), commit_seq UInt32 CODEC(Delta(4), ZSTD(1)),
	timeline UInt32, commit_time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)), ingested_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
	PROJECTION p_position (SELECT source, max(bitOr(bitShiftLeft(toUInt128(commit_lsn), 64), toUInt128(commit_seq))) GROUP BY source))
	ENGINE = MergeTree PARTITION BY toYYYYMM(ingested_at) ORDER BY (event_type, event_date_time, event_id)
	SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1`

// The project's own table: a million rows in batches, the position read back.
func TestMillionRowsOfEventLog(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	ctx := t.Context()
	require.NoError(t, conn.Exec(ctx, eventLog))
	const batches, size = 10, 100_000
	for i := range batches {
		require.NoError(t, sendEvents(ctx, conn, i*size, size))
	}
	require.Equal(t, uint64(batches*size), count(t, conn, "event_log"))
	var lsn uint64
	var seq uint32
	require.NoError(t, conn.QueryRow(ctx, `SELECT max(commit_lsn), argMax(commit_seq, commit_lsn)
		FROM event_log WHERE source = 'src'`).Scan(&lsn, &seq))
	require.Equal(t, uint64(batches*size-1), lsn)
	require.Equal(t, uint32(7), seq)
}

// sendEvents inserts n events, column by column, in one block.
func sendEvents(ctx context.Context, conn driver.Conn, from, n int) error {
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO event_log")
	if err != nil {
		return err
	}
	now := time.Now().UnixMicro()
	ids, contexts := make([]uuid.UUID, n), make([]string, n)
	times, ingested := make([]int64, n), make([]int64, n)
	lsns := make([]uint64, n)
	for i := range n {
		ids[i] = uuid.New()
		contexts[i] = fmt.Sprintf(`{"user":{"id":"%s","email":"user%d@example.com","first_name":"Test","last_name":"User"}}`, ids[i], i)
		times[i], ingested[i], lsns[i] = now+int64(i), now/1000, uint64(from+i)
	}
	for i, column := range []any{
		ids, slices.Repeat([]string{"user_created"}, n), times, slices.Repeat([]string{"Local"}, n), contexts,
		slices.Repeat([]uint64{1}, n), slices.Repeat([]string{"src"}, n), lsns,
		slices.Repeat([]uint32{7}, n), slices.Repeat([]uint32{1}, n), times, ingested,
	} {
		if err := batch.Column(i).Append(column); err != nil {
			return err
		}
	}
	return batch.Send()
}

func insertNumber(ctx context.Context, conn driver.Conn, table string, a uint64) error {
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO "+table)
	if err != nil {
		return err
	}
	if err := batch.Append(a); err != nil {
		return err
	}
	return batch.Send()
}

// A view whose target is gone refuses the INSERT when it is registered, before there are rows.
func TestInsertThatAViewRefuses(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	ctx := t.Context()
	for _, sql := range []string{
		"CREATE TABLE t (a UInt64) ENGINE MergeTree ORDER BY a", "CREATE TABLE target (a UInt64) ENGINE MergeTree ORDER BY a",
		"CREATE MATERIALIZED VIEW v TO target AS SELECT a FROM t", "DROP TABLE target",
	} {
		require.NoError(t, conn.Exec(ctx, sql), sql)
	}
	_, err := conn.PrepareBatch(ctx, "INSERT INTO t")
	requireCode(t, err, 60)
	ignoring := clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"materialized_views_ignore_errors": 1}))
	batch, err := conn.PrepareBatch(ignoring, "INSERT INTO t (a)")
	require.NoError(t, err)
	require.NoError(t, batch.Append(uint64(1)))
	require.NoError(t, batch.Send())
	require.EqualValues(t, 1, count(t, conn, "t"))
}
