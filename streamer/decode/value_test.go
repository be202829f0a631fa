package decode_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

func TestARowBecomesColumns(t *testing.T) {
	t.Parallel()
	rows := new(decode.Rows)
	d := started(t, outbox...)
	assert.Equal(t, decode.Row, feed(t, d, rows, insertMessage(outboxOID, sampleRow()...)))

	require.Equal(t, 1, rows.Len())
	assert.Empty(t, rows.Rejects)
	assert.Equal(t, sampleID, rows.IDAt(0))
	assert.Equal(t, []string{"user_created"}, rows.Type.Values)
	assert.Equal(t, []uint16{0}, rows.Type.Keys)
	assert.Equal(t, []int64{sampleTime}, rows.DateTime)
	assert.Equal(t, []string{"Production"}, rows.Environment.Values)
	assert.Equal(t, []byte("\x08"+`{"a": 1}`), rows.Context, "length and bytes")
	assert.Equal(t, `{"a": 1}`, string(rows.ContextAt(0)))
	assert.Equal(t, []uint64{3}, rows.MetadataVersion)
	assert.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", rows.TraceIDAt(0))
	assert.Equal(t, []string{"shop"}, rows.PublishedBy.Values)
	assert.Equal(t, []int64{sampleTime}, rows.CommitTime)
	assert.Equal(t, decode.Position{LSN: sampleLSN, Seq: 1}, rows.Position(0))
	assert.Equal(t, []string{sampleTrace}, rows.Traces)
	// ClickHouse keeps a UUID as two little-endian halves.
	assert.Equal(t, unhex("5f7ed4c3b2a19301 5b4a3f2e1d0c9b8a"), rows.ID)
}

func micros(t *testing.T, v string) int64 {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, v)
	require.NoError(t, err)
	return at.UnixMicro()
}

// value is a value of a column and what becomes of it.
type value struct {
	name   string
	column string
	oid    uint32
	datum  datum
	want   any    // the decoded value
	bad    string // or why the row is rejected
}

func values(t *testing.T) []value {
	t.Helper()
	const id, kind, at, env, context, version = "id", "event_type", "event_date_time", "environment", "event_context", "metadata_version"
	const trace, by, sampleTraceID = "trace_context", "published_by", "4bf92f3577b34da6a3ce929d0e0e4736"
	stamp := func(v string) int64 { return micros(t, v) }
	long := strings.Repeat("é", 100_000)
	return []value{
		{"uuid", id, oidUUID, asBytes("0193a1b2c3d47e5f8a9b0c1d2e3f4a5b"), sampleID, ""},
		{"uuid as text", id, oidUUID, asText("0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"), sampleID, ""},
		{"zero uuid", id, oidUUID, asBytes("00000000000000000000000000000000"), uuid.Nil, ""},
		{"short uuid", id, oidUUID, asBytes("0193"), nil, "column id has the wrong length"},
		{"empty uuid", id, oidUUID, asBytes(""), nil, "column id has the wrong length"},
		{"no uuid", id, oidUUID, asText("0193a1b2"), nil, "column id is not a UUID"},
		{"null uuid", id, oidUUID, null, nil, "column id is NULL"},

		{"type", kind, oidText, binaryString("a"), "a", ""},
		{"type as text", kind, oidText, asText("a"), "a", ""},
		{"type of varchar", kind, oidVarchar, binaryString("a"), "a", ""},
		{"empty type", kind, oidText, binaryString(""), nil, "column event_type is empty"},
		{"null type", kind, oidText, null, nil, "column event_type is NULL"},

		{"timestamptz", at, oidTimestamptz, asBytes("000303ef9712c66d"), stamp("2026-11-23T12:34:56.789101Z"), ""},
		{"2000", at, oidTimestamptz, binaryInt8(0), stamp("2000-01-01T00:00:00Z"), ""},
		{"before 2000", at, oidTimestamptz, binaryInt8(-1), stamp("1999-12-31T23:59:59.999999Z"), ""},
		{"before 1970", at, oidTimestamptz, binaryTime(-1), stamp("1969-12-31T23:59:59.999999Z"), ""},
		{"earliest", at, oidTimestamptz, binaryTime(stamp("1900-01-01T00:00:00Z")), stamp("1900-01-01T00:00:00Z"), ""},
		{"too early", at, oidTimestamptz, binaryTime(stamp("1899-12-31T23:59:59.999999Z")), nil, "column event_date_time is outside 1900-01-01 to 2299-12-31"},
		{"latest", at, oidTimestamptz, binaryTime(stamp("2299-12-31T23:59:59.999999Z")), stamp("2299-12-31T23:59:59.999999Z"), ""},
		{"too late", at, oidTimestamptz, binaryTime(stamp("2300-01-01T00:00:00Z")), nil, "column event_date_time is outside 1900-01-01 to 2299-12-31"},
		{"would overflow", at, oidTimestamptz, binaryInt8(math.MaxInt64 - 1), nil, "column event_date_time is outside 1900-01-01 to 2299-12-31"},
		{"infinity", at, oidTimestamptz, binaryInt8(math.MaxInt64), nil, "column event_date_time is infinite"},
		{"-infinity", at, oidTimestamptz, binaryInt8(math.MinInt64), nil, "column event_date_time is infinite"},
		{"short timestamp", at, oidTimestamptz, asBytes("00"), nil, "column event_date_time has the wrong length"},
		{"null timestamp", at, oidTimestamptz, null, nil, "column event_date_time is NULL"},
		{"timestamptz as text", at, oidTimestamptz, asText("2026-11-23 12:34:56.789101+00"), stamp("2026-11-23T12:34:56.789101Z"), ""},
		{"no fraction", at, oidTimestamptz, asText("2026-11-23 12:34:56+00"), stamp("2026-11-23T12:34:56Z"), ""},
		{"short fraction", at, oidTimestamptz, asText("2026-11-23 12:34:56.7+00"), stamp("2026-11-23T12:34:56.7Z"), ""},
		{"half hours", at, oidTimestamptz, asText("2026-11-23 18:04:56+05:30"), stamp("2026-11-23T12:34:56Z"), ""},
		{"seconds of an offset", at, oidTimestamptz, asText("1900-01-02 00:00:00-04:56:02"), stamp("1900-01-02T04:56:02Z"), ""},
		{"timestamp", at, oidTimestamp, binaryInt8(1), stamp("2000-01-01T00:00:00.000001Z"), ""},
		{"timestamp as text", at, oidTimestamp, asText("2026-11-23 12:34:56.789101"), stamp("2026-11-23T12:34:56.789101Z"), ""},
		{"infinity as text", at, oidTimestamptz, asText("infinity"), nil, "column event_date_time is infinite"},
		{"-infinity as text", at, oidTimestamptz, asText("-infinity"), nil, "column event_date_time is infinite"},
		{"early text", at, oidTimestamptz, asText("1899-12-31 23:59:59+00"), nil, "column event_date_time is outside 1900-01-01 to 2299-12-31"},
		{"before Christ", at, oidTimestamptz, asText("0044-03-15 12:00:00+00 BC"), nil, "column event_date_time is not an ISO timestamp"},
		{"another DateStyle", at, oidTimestamptz, asText("23/11/2026 12:34:56 UTC"), nil, "column event_date_time is not an ISO timestamp"},

		{"environment", env, oidText, binaryString("Local"), "Local", ""},
		{"no environment", env, oidText, binaryString(""), "", ""},
		{"environment of varchar", env, oidVarchar, asText("Local"), "Local", ""},
		{"null environment", env, oidText, null, "", ""},

		{"json", context, oidJSON, binaryString(` {"b":1 ,"a":"\u00e9"} `), ` {"b":1 ,"a":"\u00e9"} `, ""},
		{"json as text", context, oidJSON, asText(`[1, 2]`), `[1, 2]`, ""},
		{"text", context, oidText, binaryString("\x00\xff no JSON"), "\x00\xff no JSON", ""},
		{"empty", context, oidText, binaryString(""), "", ""},
		{"long", context, oidJSON, binaryString(long), long, ""},
		{"jsonb", context, oidJSONB, binaryString("\x01" + `{"a": 1}`), `{"a": 1}`, ""},
		{"jsonb as text", context, oidJSONB, asText(`{"a": 1}`), `{"a": 1}`, ""},
		{"jsonb of a newer version", context, oidJSONB, binaryString("\x02{}"), nil, "column event_context has an unknown jsonb version"},
		{"jsonb without version", context, oidJSONB, binaryString(""), nil, "column event_context has an unknown jsonb version"},
		{"null context", context, oidJSON, null, nil, "column event_context is NULL"},

		{"bigint", version, oidInt8, binaryInt8(math.MaxInt64), uint64(math.MaxInt64), ""},
		{"zero", version, oidInt8, binaryInt8(0), uint64(0), ""},
		{"int", version, oidInt4, asBytes("7fffffff"), uint64(math.MaxInt32), ""},
		{"bigint as text", version, oidInt8, asText("9223372036854775807"), uint64(math.MaxInt64), ""},
		{"negative", version, oidInt8, binaryInt8(-1), nil, "column metadata_version is negative"},
		{"negative int", version, oidInt4, asBytes("ffffffff"), nil, "column metadata_version is negative"},
		{"negative text", version, oidInt8, asText("-1"), nil, "column metadata_version is negative"},
		{"too large", version, oidInt8, asText("9223372036854775808"), nil, "column metadata_version is not a 64-bit integer"},
		{"no number", version, oidInt8, asText("one"), nil, "column metadata_version is not a 64-bit integer"},
		{"odd length", version, oidInt8, asBytes("000001"), nil, "column metadata_version has the wrong length"},
		{"null version", version, oidInt8, null, uint64(1), ""},

		{"trace", trace, oidText, binaryString(sampleTrace), sampleTraceID, ""},
		{"trace as text", trace, oidVarchar, asText(sampleTrace), sampleTraceID, ""},
		{"trace in capitals", trace, oidText, binaryString(strings.ToUpper(sampleTrace)), sampleTraceID, ""},
		{"no trace", trace, oidText, null, "", ""},
		{"empty trace", trace, oidText, binaryString(""), "", ""},
		{"zero trace", trace, oidText, binaryString("00-00000000000000000000000000000000-00f067aa0ba902b7-01"), "", ""},
		{"trace without its end", trace, oidText, binaryString(sampleTrace[:54]), "", ""},
		{"trace of a later version", trace, oidText, binaryString(sampleTrace + "-1"), "", ""},
		{"trace that is half hexadecimal", trace, oidText, binaryString(sampleTrace[:19] + "x" + sampleTrace[20:]), "", ""},
		{"trace without dashes", trace, oidText, binaryString(strings.ReplaceAll(sampleTrace, "-", "0")), "", ""},

		{"published by", by, oidText, binaryString("shop"), "shop", ""},
		{"published by, as text", by, oidVarchar, asText("größe"), "größe", ""},
		{"no login", by, oidText, null, "", ""},
	}
}

func TestEveryTypeOfEveryColumn(t *testing.T) {
	t.Parallel()
	for _, v := range values(t) {
		t.Run(v.column+"/"+v.name, func(t *testing.T) {
			t.Parallel()
			columns := append([]columnType(nil), outbox...)
			for i := range columns {
				if columns[i].name == v.column {
					columns[i].oid = v.oid
				}
			}
			rows := new(decode.Rows)
			kind := feed(t, started(t, columns...), rows, insertMessage(outboxOID, with(v.column, v.datum)...))
			assert.Equal(t, decode.Row, kind)
			if v.bad != "" {
				require.Len(t, rows.Rejects, 1)
				assert.Zero(t, rows.Len())
				assert.Equal(t, v.bad, rows.Rejects[0].Reason)
				return
			}
			require.Equal(t, 1, rows.Len(), "%v", rows.Rejects)
			assert.Equal(t, v.want, valueOf(rows, 0, v.column))
		})
	}
}

// valueOf reads the value of an outbox column in row i.
func valueOf(rows *decode.Rows, i int, column string) any {
	switch column {
	case "id":
		return rows.IDAt(i)
	case "event_type":
		return rows.Type.Values[rows.Type.Keys[i]]
	case "event_date_time":
		return rows.DateTime[i]
	case "environment":
		return rows.Environment.Values[rows.Environment.Keys[i]]
	case "event_context":
		return string(rows.ContextAt(i))
	case "metadata_version":
		return rows.MetadataVersion[i]
	case "trace_context":
		return rows.TraceIDAt(i)
	case "published_by":
		return rows.PublishedBy.Values[rows.PublishedBy.Keys[i]]
	default:
		panic("no column " + column)
	}
}

func TestTracesAreKeptOncePerBatch(t *testing.T) {
	t.Parallel()
	rows := new(decode.Rows)
	d := started(t, outbox...)
	send := func(trace datum) { feed(t, d, rows, insertMessage(outboxOID, with("trace_context", trace)...)) }
	send(null)
	send(binaryString(""))
	send(binaryString("not a traceparent"))
	assert.Empty(t, rows.Traces)
	send(binaryString(sampleTrace))
	send(binaryString(sampleTrace))
	assert.Equal(t, []string{sampleTrace}, rows.Traces)
	for i := range 3 * decode.MaxTraces {
		send(asText(sampleTrace[:50] + string(rune('a'+i%26)) + "0" + sampleTrace[52:]))
	}
	assert.Len(t, rows.Traces, decode.MaxTraces)
	assert.Equal(t, 5+3*decode.MaxTraces, rows.Len(), "a trace is never a reason to drop a row")
	rows.Reset()
	assert.Empty(t, rows.Traces)
}
