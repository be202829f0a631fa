package chserver_test

import (
	"fmt"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"
	"github.com/stretchr/testify/require"
)

// Tables that come with a query are there for that query alone, also if it fails.
func TestExternalTables(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, func(o *clickhouse.Options) { o.MaxOpenConns = 1 })
	for round := range 3 {
		table, err := ext.NewTable("a `table`", ext.Column("n", "UInt64"), ext.Column("s", "LowCardinality(String)"))
		require.NoError(t, err)
		for i := range 10 + round {
			require.NoError(t, table.Append(uint64(i), fmt.Sprint("row ", i)))
		}
		empty, err := ext.NewTable("empty", ext.Column("n", "UInt64"))
		require.NoError(t, err)
		ctx := clickhouse.Context(t.Context(), clickhouse.WithExternalTable(table, empty))
		var rows, none uint64
		var last string
		require.NoError(t, conn.QueryRow(ctx, "SELECT count(), max(s), (SELECT count() FROM empty) FROM `a \\`table\\`` WHERE n % 2 = 1").Scan(&rows, &last, &none))
		require.Equal(t, uint64(5+round/2), rows)
		require.Equal(t, "row 9", last)
		require.Zero(t, none)
		requireCode(t, conn.QueryRow(ctx, "SELECT count() FROM `a \\`table\\`` WHERE throwIf(n = 3)").Scan(&rows), 395)
		requireCode(t, conn.QueryRow(t.Context(), "SELECT count() FROM empty").Scan(&rows), 60)
	}
}
