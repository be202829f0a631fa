package chserver

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseInsert(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]insertInto{
		"INSERT INTO t":                                  {head: "INSERT INTO t", target: "t"},
		"insert t values":                                {head: "insert t", tail: " ", target: "t"},
		"INSERT INTO t FORMAT Native;":                   {head: "INSERT INTO t", tail: " ", target: "t"},
		"INSERT INTO `a b`.\"t\" (x, `y z`, n.k) VALUES": {head: "INSERT INTO `a b`.\"t\" (x, `y z`, n.k)", tail: " ", target: "`a b`.\"t\"", columns: []string{"x", "y z", "n.k"}},
		"INSERT INTO t (* EXCEPT(a, b)) VALUES":          {head: "INSERT INTO t (* EXCEPT(a, b))", tail: " ", target: "t", except: []string{"a", "b"}},
		"INSERT INTO TABLE t SETTINGS a = 1, b = 'VALUES (' FORMAT Native": {
			head: "INSERT INTO TABLE t", tail: " SETTINGS a = 1, b = 'VALUES (' ", target: "t",
		},
		"INSERT INTO FUNCTION file('x', CSV, 'a UInt8') VALUES": {
			head: "INSERT INTO FUNCTION file('x', CSV, 'a UInt8')", tail: " ", target: "file('x', CSV, 'a UInt8')", isFunction: true,
		},
		"/* c */ INSERT -- VALUES (1)\n INTO t /* FORMAT CSV */": {
			head: "/* c */ INSERT -- VALUES (1)\n INTO t", tail: " /* FORMAT CSV */", target: "t",
		},
	} {
		st := parseStatement(sql)
		require.Equal(t, statementInsertData, st.kind, sql)
		require.Equal(t, want, st.insert, sql)
	}
}

func TestParseOtherStatements(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]statement{
		"INSERT INTO t VALUES (1)":                     {inline: true},
		"INSERT INTO t (a) FORMAT JSONEachRow {}":      {inline: true},
		"INSERT INTO t SELECT 1":                       {},
		"INSERT INTO t (a) WITH 1 AS x SELECT x":       {},
		"INSERT INTO t (SELECT 1)":                     {},
		"INSERT INTO t FROM INFILE 'x' FORMAT CSV":     {},
		"WITH 1 AS x INSERT INTO t SELECT x":           {},
		"CREATE TABLE t (a UInt8)":                     {},
		"SELECT 1; ":                                   {kind: statementSelect, sql: "SELECT 1"},
		"SELECT 'FORMAT x' FORMAT JSON":                {kind: statementSelect, sql: "SELECT 'FORMAT x' "},
		"SELECT 1 FORMAT JSON SETTINGS a = 1;":         {kind: statementSelect, sql: "SELECT 1  SETTINGS a = 1"},
		"SELECT format FROM t":                         {kind: statementSelect},
		"(SELECT 1) UNION ALL (SELECT 2)":              {kind: statementSelect},
		"KILL QUERY WHERE query_id = 'SYNC'":           {kind: statementKill, where: " query_id = 'SYNC'", mode: "ASYNC"},
		"kill query where query_id like 'a%' sync;":    {kind: statementKill, where: " query_id like 'a%' ", mode: "SYNC"},
		"KILL QUERY WHERE user = 'x' TEST FORMAT JSON": {kind: statementKill, where: " user = 'x' ", mode: "TEST"},
		"KILL MUTATION WHERE table = 't'":              {},
	} {
		got := parseStatement(sql)
		if want.sql == "" {
			want.sql = sql
		}
		want.verb, want.insert = got.verb, got.insert
		require.Equal(t, want, got, sql)
	}
}

func TestReplaceTable(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		"SELECT 1 FROM system.processes WHERE a":        "SELECT 1 FROM (x) WHERE a",
		"FROM `system`.\"processes\" p, SYSTEM.tables":  "FROM (x) p, SYSTEM.tables",
		"SELECT 'system.processes' -- system.processes": "SELECT 'system.processes' -- system.processes",
		"FROM system.processes_list":                    "FROM system.processes_list",
	} {
		require.Equal(t, want, replaceTable(sql, "processes", "(x)"))
	}
}

// Any client can send any statement: none may crash the server.
func FuzzParseStatement(f *testing.F) {
	for _, sql := range []string{
		"", "`", "'", "INSERT", "INSERT INTO", "INSERT INTO t (", "KILL QUERY WHERE", "SELECT 1 FORMAT", "(((", "/*", "--", "a.b.", "SELECT '\\",
	} {
		f.Add(sql)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		st := parseStatement(sql)
		require.LessOrEqual(t, len(st.sql), len(sql))
		replaceTable(sql, "processes", "")
		_, _ = parseType(sql)
	})
}

// So do blocks. What is passed over is what is there.
func FuzzReadBlock(f *testing.F) {
	f.Add([]byte{1, 0, 2, 255, 255, 255, 255, 0, 1, 1, 1, 'a', 5, 'U', 'I', 'n', 't', '8', 0, 42})
	f.Add(append(headerBlock([]columnInfo{{"a", "Array(LowCardinality(Nullable(String)))"}}), 0))
	f.Add(blockColumn(blockHead(nil, 1, 2), columnHeader(nil, "s", "String"), stringColumn([]string{"x", "yz"})))
	f.Add(blockColumn(blockHead(nil, 1, 1), columnHeader(nil, "d", "Dynamic"), []byte{3, 0, 0, 0, 0, 0, 0, 0, 1, 5, 'U', 'I', 'n', 't', '8', 0, 1}))
	f.Fuzz(func(t *testing.T, block []byte) {
		r := blockReader{cursor: cursor{buf: block}, wire: true, types: make(map[string]*columnType)}
		columns, rows, err := r.header()
		for ; err == nil && columns > 0; columns-- {
			var column columnBytes
			column, err = r.column(rows)
			require.LessOrEqual(t, len(column.header)+len(column.data), len(block))
		}
	})
}
