package chserver_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestThePasswordIsAskedFor(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	for _, auth := range []clickhouse.Auth{
		{Username: "default"},
		{Username: "default", Password: password + "x"},
		{Username: "other", Password: password},
		{Password: password[1:]},
	} {
		conn, err := clickhouse.Open(s.options(func(o *clickhouse.Options) { o.Auth = auth }))
		require.NoError(t, err)
		requireCode(t, conn.Ping(t.Context()), 516)
		require.NoError(t, conn.Close())
	}
}

// What a client with the password may not do: reach files, programs and other
// servers, in any spelling that the engine understands.
func TestNothingOutsideOfTheEngineIsReached(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	require.NoError(t, conn.Exec(t.Context(), "CREATE TABLE t (a String) ENGINE MergeTree ORDER BY a"))
	dir := t.TempDir()
	secret, written := filepath.Join(dir, "secret"), filepath.Join(dir, "written")
	require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for _, sql := range []string{
		// table functions
		"SELECT * FROM file('" + secret + "', 'LineAsString')",
		"DESCRIBE TABLE file('" + secret + "')",
		"SELECT * FROM filesystem('" + dir + "')",
		"SELECT * FROM '" + secret + "'",
		"SELECT * FROM `" + secret + "`",
		"SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
		"SELECT * FROM s3('http://127.0.0.1:1/bucket/key', 'LineAsString')",
		"SELECT * FROM hdfs('hdfs://127.0.0.1:1/x', 'LineAsString', 'a String')",
		"SELECT * FROM remote('127.0.0.1:1', system.one)",
		"SELECT * FROM remoteSecure('127.0.0.1:1', system.one)",
		"SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
		"SELECT * FROM postgresql('127.0.0.1:1', 'd', 't', 'u', 'p')",
		"SELECT * FROM mongodb('127.0.0.1:1', 'd', 't', 'u', 'p', 'a String')",
		"SELECT * FROM redis('127.0.0.1:1', 'a', 'a String')",
		"SELECT * FROM sqlite('" + secret + "', 't')",
		"SELECT * FROM odbc('DSN=x', 'd', 't')",
		"SELECT * FROM jdbc('jdbc:x', 'd', 't')",
		"SELECT * FROM executable('id', 'LineAsString', 'a String')",
		"SELECT * FROM icebergLocal('" + dir + "')",
		"SELECT * FROM deltaLakeLocal('" + dir + "')",
		"INSERT INTO FUNCTION file('" + written + "', 'LineAsString', 'a String') VALUES ('x')",
		"INSERT INTO FUNCTION url('http://127.0.0.1:1/', 'LineAsString', 'a String') SELECT 'x'",
		"CREATE TABLE u AS file('" + secret + "', 'LineAsString')",
		// functions and statements that read and write files
		"SELECT file('" + secret + "')",
		"SELECT FILE ('" + secret + "')",
		"SELECT `file`('" + secret + "')",
		"SELECT \"file\"('" + secret + "')",
		"SELECT “file”('" + secret + "')",
		"SELECT file/* a */('" + secret + "')",
		"/* /* a */ ' */ SELECT file('" + secret + "') -- '",
		"SELECT 1, // '\n file('" + secret + "') -- '",
		"SELECT $$'$$, file('" + secret + "'), $a$'$a$",
		"SELECT ‘'’, file('" + secret + "'), ‘'’",
		"SELECT '\\'', file('" + secret + "'), '\\''",
		"SELECT * APPLY(file) FROM (SELECT '" + secret + "')",
		"SELECT * APPLY file FROM (SELECT '" + secret + "')",
		"CREATE TABLE u (a String DEFAULT file('" + secret + "')) ENGINE Memory",
		"CREATE FUNCTION read AS (p) -> file(p)",
		"CREATE VIEW u AS SELECT file('" + secret + "')",
		"INSERT INTO t FROM INFILE '" + secret + "' FORMAT LineAsString",
		"INSERT INTO t SELECT file('" + secret + "')",
		"INSERT INTO t VALUES (file('" + secret + "'))",
		"SELECT 1 INTO OUTFILE '" + written + "'",
		"SELECT 1 INTO/**/OUTFILE '" + written + "' FORMAT CSV",
		"BACKUP TABLE t TO File('" + written + "')",
		"RESTORE TABLE t FROM File('" + secret + "')",
		"ATTACH TABLE u FROM '" + dir + "' (a String) ENGINE MergeTree ORDER BY a",
		"CREATE TABLE u (a String) ENGINE MergeTree ORDER BY a SETTINGS disk = disk(type = local, path = '" + written + "/')",
		// engines and dictionaries
		"CREATE TABLE u (a String) ENGINE = File(LineAsString, '" + written + "')",
		"CREATE TABLE u (a String) ENGINE URL('http://127.0.0.1:1/', 'LineAsString')",
		"CREATE TABLE u (a String) ENGINE = Executable('id', 'LineAsString')",
		"CREATE TABLE u (a String) ENGINE ExecutablePool('id', 'LineAsString')",
		"CREATE TABLE u (a String) ENGINE = Kafka('127.0.0.1:1', 't', 'g', 'CSV')",
		"CREATE TABLE u (a String) ENGINE = FileLog('" + dir + "', 'LineAsString')",
		"CREATE TABLE u (a UInt64) ENGINE = EmbeddedRocksDB(0, '" + written + "') PRIMARY KEY a",
		"CREATE TABLE u AS system.one ENGINE = Distributed('default', 'system', 'one')",
		"CREATE DATABASE u ENGINE = Filesystem('" + dir + "')",
		"CREATE DATABASE u ENGINE = MaterializedPostgreSQL('127.0.0.1:1', 'd', 'u', 'p')",
		"CREATE DICTIONARY u (a UInt64, b String) PRIMARY KEY a SOURCE(EXECUTABLE(COMMAND 'id' FORMAT 'CSV')) LAYOUT(FLAT()) LIFETIME(0)",
		"CREATE DICTIONARY u (a UInt64, b String) PRIMARY KEY a SOURCE(HTTP(URL 'http://127.0.0.1:1/' FORMAT 'CSV')) LAYOUT(FLAT()) LIFETIME(0)",
		// rights and the server itself
		"CREATE USER u", "GRANT FILE ON *.* TO default", "CREATE NAMED COLLECTION u AS a = 1", "SYSTEM SHUTDOWN", "system kill",
	} {
		err := conn.Exec(t.Context(), sql)
		if !assert.Error(t, err, sql) {
			continue
		}
		assert.NotContains(t, err.Error(), "onnection", "the engine tried: "+sql)
	}
	assert.NoFileExists(t, written)
	assert.Zero(t, count(t, conn, "t"))
}

func TestOrdinaryStatementsAreAllowed(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	for _, sql := range []string{
		"CREATE TABLE t (a String, file String) ENGINE MergeTree ORDER BY a",
		"CREATE MATERIALIZED VIEW v ENGINE = MergeTree ORDER BY a AS SELECT a, 'file(x) INTO OUTFILE' AS b FROM t",
		"INSERT INTO t SELECT toString(number), format('{} {}', 'infile', 'url(') FROM numbers(3)",
		"SELECT file, 'INTO OUTFILE ''x''' FROM t -- file('x')",
		"ALTER TABLE t ADD COLUMN b String", "OPTIMIZE TABLE t FINAL", "CREATE FUNCTION plus_one_" + uniqueID("f") + " AS (x) -> x + 1",
		"TRUNCATE TABLE t", "EXPLAIN SELECT * FROM t", "SYSTEM STOP MERGES t", "SYSTEM START MERGES t", "SELECT * FROM system.parts LIMIT 1",
		"CREATE TEMPORARY TABLE u (a Int8)", "KILL QUERY WHERE query_id = 'x'", "DROP TABLE t SYNC",
	} {
		assert.NoError(t, conn.Exec(t.Context(), sql), sql)
	}
}

// A profile can set and forbid settings, as an administrator does.
func TestProfile(t *testing.T) {
	t.Parallel()
	s := startInstance(t, &instance{
		profile: "<max_threads>1</max_threads><async_insert>0</async_insert><constraints><async_insert><const/></async_insert></constraints>",
	})
	conn := s.open(func(o *clickhouse.Options) { o.MaxOpenConns = 1 })
	threads := func(settings clickhouse.Settings) (n string) {
		ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(settings))
		require.NoError(t, conn.QueryRow(ctx, "SELECT toString(getSetting('max_threads'))").Scan(&n))
		return n
	}
	assert.Equal(t, "1", threads(nil))
	assert.Equal(t, "2", threads(clickhouse.Settings{"max_threads": 2}))
	assert.Equal(t, "1", threads(clickhouse.Settings{"async_insert": 0}), "the value of the profile is allowed")
	ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"async_insert": 1}))
	requireCode(t, conn.Exec(ctx, "SELECT 1"), 452)
}
