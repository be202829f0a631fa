package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// useServer points queries at the test's own database.
func useServer(t *testing.T) {
	t.Helper()
	for _, variable := range testenv.ClickHouseEnviron(testenv.New(t).ClickHouseConfig) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
}

// ask returns what query prints, without the time it took.
func ask(t *testing.T, sql string) string {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, query(t.Context(), &out, sql))
	return regexp.MustCompile(`[0-9.µm]+s\)`).ReplaceAllString(out.String(), "TIME)")
}

func TestQueryPrintsATable(t *testing.T) {
	useServer(t)
	assert.Equal(t, "ok (TIME)\n", ask(t, "CREATE TABLE things (id UInt8, name Nullable(String)) ENGINE = Memory"))
	assert.Equal(t, "ok (TIME)\n", ask(t, "INSERT INTO things VALUES (1, 'né'), (200, NULL), (3, 'two\nlines')"))
	assert.Equal(t, `id   name
───  ────────────
1    né
3    "two\nlines"
200  NULL
(3 rows, TIME)
`, ask(t, "SELECT id, name FROM things ORDER BY id"))
	assert.Equal(t, "id  name\n──  ────\n(0 rows, TIME)\n", ask(t, "SELECT * FROM things WHERE id = 0"))
}

func TestQueryPrintsEveryKindOfValue(t *testing.T) {
	useServer(t)
	for expression, want := range map[string]string{
		"toDate('2026-01-02')":                              "2026-01-02",
		"toDateTime('2026-01-02 03:04:05', 'UTC')":          "2026-01-02 03:04:05",
		"toDateTime64('2026-01-02 03:04:05.678', 3, 'UTC')": "2026-01-02 03:04:05.678",
		"toDateTime64('2026-01-02 03:04:05.6', 6, 'UTC')":   "2026-01-02 03:04:05.600000",
		"toDateTime64('2299-12-31 23:59:59', 6, 'UTC')":     "2299-12-31 23:59:59.000000",
		"toDateTime64('1900-01-01 00:00:00', 6, 'UTC')":     "1900-01-01 00:00:00.000000",
		`CAST('{"a":{"b":1},"c":["d"]}' AS JSON)`:           `{"a":{"b":1},"c":["d"]}`,
		"toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')":    "61f0c404-5cb3-11e7-907b-a6006ad3dba0",
		"toUInt64(18446744073709551615)":                    "18446744073709551615",
		"1.5":                                               "1.5",
		"true":                                              "true",
		"toDecimal64('12.345', 3)":                          "12.345",
		"['a', 'b']":                                        `["a","b"]`,
		"map('k', 1)":                                       `{"k":1}`,
		"NULL":                                              "NULL",
		"toLowCardinality('low')":                           "low",
		"CAST('a' AS Enum8('a' = 1))":                       "a",
		"toIPv4('127.0.0.1')":                               "127.0.0.1",
	} {
		lines := strings.Split(ask(t, "SELECT "+expression+" AS value"), "\n")
		require.Len(t, lines, 5, expression)
		assert.Equal(t, want, lines[2], expression)
	}
}

func TestQueryErrorsSayWhatIsWrong(t *testing.T) {
	t.Run("in the statement", func(t *testing.T) {
		useServer(t)
		require.ErrorContains(t, query(t.Context(), &bytes.Buffer{}, "SELECT nothing"), "Unknown expression identifier `nothing`")
	})
	t.Run("no engine", func(t *testing.T) {
		t.Setenv("CLICKHOUSE_HOST", "")
		t.Setenv("DIEHARD_DEV_DIR", t.TempDir())
		require.ErrorContains(t, query(t.Context(), &bytes.Buffer{}, "SELECT 1"), "ClickHouse is not running: start it with make up")
	})
}

func TestStreamerNeedsEngines(t *testing.T) {
	for _, name := range []string{"DATABASE_URL", "CLICKHOUSE_HOST"} {
		t.Setenv(name, "")
	}
	t.Setenv("DIEHARD_DEV_DIR", t.TempDir())
	cmd := root()
	cmd.SetArgs([]string{"streamer", "status", "--json"})
	require.ErrorContains(t, cmd.Execute(), "make up")
}
