package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Without CLICKHOUSE_HOST the embedded engine is used, and its port. A wrong
// CLICKHOUSE_PORT is a mistake all the same.
func TestWrongSettingsOfDatabasesAreNotIgnored(t *testing.T) {
	t.Setenv("DIEHARD_DEV_DIR", t.TempDir())
	for name, value := range map[string]string{
		"DATABASE_URL": "", "DATABASE_MAX_CONNS": "0", "CLICKHOUSE_HOST": "", "CLICKHOUSE_PORT": "abc", "CLICKHOUSE_SCHEMA": "a b",
		"EMBEDDED_POSTGRES_PORT": "x",
	} {
		t.Setenv(name, value)
	}
	_, errUp := startEngines(t.Context(), false)
	assert.ErrorContains(t, errUp, "EMBEDDED_POSTGRES_PORT")
	errQuery := query(t.Context(), &bytes.Buffer{}, "SELECT 1")
	errStreamer := execStreamer([]string{"status"})
	for _, err := range []error{errUp, errQuery, errStreamer} {
		require.ErrorContains(t, err, "environment: 3 settings are wrong:")
		for _, name := range []string{"DATABASE_MAX_CONNS", "CLICKHOUSE_PORT", "CLICKHOUSE_SCHEMA"} {
			assert.ErrorContains(t, err, "\n  "+name)
		}
	}
}

// What is there twice, a program may read the first of.
func TestAVariableIsThereOnce(t *testing.T) {
	t.Parallel()
	environ := []string{"A=1", "CLICKHOUSE_PORT=1", "CLICKHOUSE_PORTS=2", "CLICKHOUSE_PORT=3"}
	assert.Equal(t, []string{"A=1", "CLICKHOUSE_PORTS=2", "CLICKHOUSE_PORT=19000", "B="}, with(environ, "CLICKHOUSE_PORT=19000", "B="))
}
