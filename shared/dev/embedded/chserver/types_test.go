package chserver_test

import (
	"fmt"
	"math/big"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

var compressions = map[string]clickhouse.CompressionMethod{
	"none": clickhouse.CompressionNone, "lz4": clickhouse.CompressionLZ4, "zstd": clickhouse.CompressionZSTD,
}

// eventRow has a column of every type the project's tables use, and Nullable ones.
type eventRow struct {
	ID      uuid.UUID  `ch:"id"`
	Type    string     `ch:"type"`
	Text    string     `ch:"text"`
	Micro   time.Time  `ch:"micro"`
	Milli   time.Time  `ch:"milli"`
	U8      uint8      `ch:"u8"`
	U16     uint16     `ch:"u16"`
	U32     uint32     `ch:"u32"`
	U64     uint64     `ch:"u64"`
	I32     int32      `ch:"i32"`
	NID     *uuid.UUID `ch:"nid"`
	NText   *string    `ch:"ntext"`
	NType   *string    `ch:"ntype"`
	NMicro  *time.Time `ch:"nmicro"`
	NNumber *uint64    `ch:"nnumber"`
}

const eventRowColumns = `id UUID, type LowCardinality(String), text String,
	micro DateTime64(6, 'UTC'), milli DateTime64(3, 'UTC'),
	u8 UInt8, u16 UInt16, u32 UInt32, u64 UInt64, i32 Int32,
	nid Nullable(UUID), ntext Nullable(String), ntype LowCardinality(Nullable(String)),
	nmicro Nullable(DateTime64(6, 'UTC')), nnumber Nullable(UInt64)`

// Whatever is inserted over the protocol comes back the same, in every compression.
func TestInsertedRowsComeBack(t *testing.T) {
	t.Parallel()
	for name, method := range compressions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := testDatabase(t, func(o *clickhouse.Options) {
				o.Compression = &clickhouse.Compression{Method: method, Level: 1}
			})
			ctx := t.Context()
			require.NoError(t, conn.Exec(ctx, "CREATE TABLE rows ("+eventRowColumns+") ENGINE MergeTree ORDER BY u64"))
			rows := eventRows(5000)
			batch, err := conn.PrepareBatch(ctx, "INSERT INTO rows")
			require.NoError(t, err)
			for i := range rows {
				require.NoError(t, batch.AppendStruct(&rows[i]))
			}
			require.NoError(t, batch.Send())
			var back []eventRow
			require.NoError(t, conn.Select(ctx, &back, "SELECT * FROM rows ORDER BY u64"))
			require.Equal(t, rows, back)
		})
	}
}

func eventRows(n int) []eventRow {
	rows := make([]eventRow, n)
	start := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	for i := range rows {
		at := start.Add(time.Duration(i) * time.Microsecond)
		r := eventRow{
			ID: uuid.New(), Type: fmt.Sprintf("type_%d", i%300), Text: strings.Repeat("é\n\n\x00'\\", i%40),
			Micro: at, Milli: at.Truncate(time.Millisecond),
			U8: uint8(i), U16: uint16(i * 7), U32: uint32(i * 70001), U64: uint64(i), I32: int32(-i),
		}
		if i%3 == 0 {
			id, number := uuid.New(), uint64(1)<<63
			r.NID, r.NText, r.NType, r.NMicro, r.NNumber = &id, &r.Text, &r.Type, &at, &number
		}
		rows[i] = r
	}
	return rows
}

// Each expression's value must arrive as the engine meant it.
func TestSelectEveryType(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	moment := time.Date(2026, 11, 23, 10, 11, 12, 0, time.UTC)
	for expr, want := range map[string]any{
		"true":                         true,
		"toInt8(-1)":                   int8(-1),
		"toInt16(-2)":                  int16(-2),
		"toInt32(-3)":                  int32(-3),
		"toInt64(-4)":                  int64(-4),
		"toUInt8(1)":                   uint8(1),
		"toUInt16(2)":                  uint16(2),
		"toUInt32(3)":                  uint32(3),
		"toUInt64(4)":                  uint64(4),
		"toInt128('-170141183460469')": big.NewInt(-170141183460469),
		"toUInt256('170141183460469')": big.NewInt(170141183460469),
		"toFloat32(1.5)":               float32(1.5),
		"toFloat64(2.5)":               2.5,
		"'text'":                       "text",
		"toFixedString('abc', 3)":      "abc",
		"toLowCardinality('low')":      "low",
		"CAST('b', 'Enum8(\\'a\\' = 1, \\'b\\' = 2)')":                   "b",
		"CAST('b, (', 'Enum16(\\'a\\' = 1, \\'b, (\\' = 2)')":            "b, (",
		"toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')":                 uuid.MustParse("61f0c404-5cb3-11e7-907b-a6006ad3dba0"),
		"toIPv4('127.0.0.1')":                                            net.IPv4(127, 0, 0, 1).To4(),
		"toDateTime('2026-11-23 10:11:12', 'UTC')":                       moment,
		"toDateTime64('2026-11-23 10:11:12', 6, 'UTC')":                  moment,
		"toDate('2026-11-23')":                                           moment.Truncate(24 * time.Hour),
		"toDate32('2026-11-23')":                                         moment.Truncate(24 * time.Hour),
		"toString(toDecimal64('1.25', 4))":                               "1.25",
		"[1, 2, 3]":                                                      []uint8{1, 2, 3},
		"emptyArrayString()":                                             []string{},
		"[['a'], [], ['b', 'c']]":                                        [][]string{{"a"}, {}, {"b", "c"}},
		"[toLowCardinality('x'), 'y']":                                   []string{"x", "y"},
		"map('k', toUInt64(1))":                                          map[string]uint64{"k": 1},
		"map('k', [toLowCardinality('v')])":                              map[string][]string{"k": {"v"}},
		"(toUInt8(1), 'two')":                                            []any{uint8(1), "two"},
		"CAST((1, 'two'), 'Tuple(a UInt8, `b` LowCardinality(String))')": map[string]any{"a": uint8(1), "b": "two"},
		"tupleElement((toUInt64(7), 1), 1)":                              uint64(7),
	} {
		t.Run(expr, func(t *testing.T) {
			rows, err := conn.Query(t.Context(), "SELECT 'before', "+expr+", 'behind' FROM numbers(3)")
			require.NoError(t, err)
			defer rows.Close()
			n := 0
			for ; rows.Next(); n++ {
				var before, behind string
				got := reflect.New(rows.ColumnTypes()[1].ScanType())
				require.NoError(t, rows.Scan(&before, got.Interface(), &behind))
				require.Equal(t, "before", before)
				value := got.Elem().Interface()
				if at, ok := value.(time.Time); ok {
					value = at.UTC()
				}
				require.EqualValues(t, want, value)
				require.Equal(t, "behind", behind)
			}
			require.NoError(t, rows.Err())
			require.Equal(t, 3, n)
		})
	}
}

func TestSelectNulls(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	for _, expr := range []string{
		"CAST(NULL, 'Nullable(String)')", "CAST(NULL, 'Nullable(DateTime64(6))')", "CAST(NULL, 'LowCardinality(Nullable(String))')", "NULL",
	} {
		var got *string
		var behind string
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT toString("+expr+"), 'behind'").Scan(&got, &behind), expr)
		require.Nil(t, got, expr)
		rows, err := conn.Query(t.Context(), "SELECT "+expr+", 'behind' FROM numbers(5)")
		require.NoError(t, err, expr)
		n := 0
		for rows.Next() {
			n++
		}
		require.NoError(t, rows.Err(), expr)
		require.Equal(t, 5, n, expr)
	}
}

// A type whose size the server does not know is refused, and the connection lives on.
func TestSelectUnknownTypeIsRefused(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, func(o *clickhouse.Options) { o.MaxOpenConns = 1 })
	var ignored string
	err := conn.QueryRow(t.Context(), "SELECT sumState(1) AS s").Scan(&ignored)
	requireCode(t, err, 50)
	require.ErrorContains(t, err, "column s of type AggregateFunction")
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT 'fine'").Scan(&ignored))
	require.Equal(t, "fine", ignored)
}

// JSON comes as text; its paths are Dynamic.
func TestSelectJSON(t *testing.T) {
	t.Parallel()
	conn := testDatabase(t, nil)
	ctx := t.Context()
	require.NoError(t, conn.Exec(ctx, "CREATE TABLE j (n UInt64, doc JSON) ENGINE MergeTree ORDER BY n"))
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO j")
	require.NoError(t, err)
	docs := []string{`{"user":{"id":7,"tags":["a","b"]}}`, `{"user":{"id":"seven"}}`, `{}`}
	for i, doc := range docs {
		require.NoError(t, batch.Append(uint64(i), doc))
	}
	require.NoError(t, batch.Send())
	rows, err := conn.Query(ctx, `SELECT doc, doc.user.id, [doc.user.tags], CAST(n = 0 ? NULL : n, 'Variant(String, UInt64)'),
		'behind' FROM j ORDER BY n`)
	require.NoError(t, err)
	var got []string
	for rows.Next() {
		var doc, behind string
		var id clickhouse.Dynamic
		var variant clickhouse.Variant
		var tags []clickhouse.Dynamic
		require.NoError(t, rows.Scan(&doc, &id, &tags, &variant, &behind))
		got = append(got, fmt.Sprintf("%v %v %s", id.Any(), variant.Any(), behind))
		require.JSONEq(t, strings.ReplaceAll(docs[len(got)-1], " ", ""), doc)
	}
	require.NoError(t, rows.Err())
	require.Equal(t, []string{"7 <nil> behind", "seven 1 behind", "<nil> 2 behind"}, got)
}

func TestSelectOfManyBlocks(t *testing.T) {
	t.Parallel()
	for name, method := range compressions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := testDatabase(t, func(o *clickhouse.Options) { o.Compression = &clickhouse.Compression{Method: method} })
			rows, err := conn.Query(t.Context(), "SELECT number, toString(number) FROM numbers(300000)")
			require.NoError(t, err)
			var n, number uint64
			var text string
			for ; rows.Next(); n++ {
				require.NoError(t, rows.Scan(&number, &text))
				if number != n || text != fmt.Sprint(n) {
					t.Fatalf("row %d holds %d and %q", n, number, text)
				}
			}
			require.NoError(t, rows.Err())
			require.Equal(t, uint64(300000), n)
		})
	}
}
