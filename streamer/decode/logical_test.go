package decode_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/event"
	"diehard/streamer/decode"
)

const (
	goodContent = `{"v":1,"id":"0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b","event_type":"order_paid","event_date_time":"2026-11-23T12:34:56.789012Z"}` + "\n" +
		` {"a" : 1}`
	fullContent = `{ "v" : 1, "trace_context":"` + sampleTrace + `", "id":"0193A1B2-C3D4-7E5F-8A9B-0C1D2E3F4A5B" , "event_type":"a \"b\"\n\u00e9",` +
		`"event_date_time":"2026-11-23T13:34:56.789012+01:00","later":true,"published_by":"sh\u006fp","environment":"Prüfung","metadata_version":7}` + "\n" + "[1,\n2]"
)

// logicalMessage is what the server sends for pg_logical_emit_message.
func logicalMessage(flags byte, prefix, content string) []byte {
	b := be64([]byte{'M', flags}, uint64(sampleLSN))
	b = append(b, prefix+"\x00"...)
	return append(be32(b, uint32(len(content))), content...)
}

func published(content string) []byte { return logicalMessage(1, event.MessagePrefix, content) }

func reading(resume decode.Position) *decode.Decoder {
	d := decode.NewDecoder(resume)
	d.AcceptMessagesFrom(1)
	return d
}

func TestAMessageIsARow(t *testing.T) {
	t.Parallel()
	d, rows := reading(decode.Position{}), new(decode.Rows)
	feed(t, d, rows, beginMessage(sampleLSN, sampleTime))
	require.Equal(t, decode.Row, feed(t, d, rows, published(goodContent)))
	require.Equal(t, decode.Row, feed(t, d, rows, published(fullContent)))
	require.Empty(t, rows.Rejects)
	assert.Equal(t, []decode.Position{at(sampleLSN, 1), at(sampleLSN, 2)}, positions(rows))
	for i, want := range []struct {
		eventType, environment, context, traceID, publishedBy string
		version                                               uint64
	}{{"order_paid", "", ` {"a" : 1}`, "", "", 1}, {"a \"b\"\né", "Prüfung", "[1,\n2]", sampleTrace[3:35], "shop", 7}} {
		assert.Equal(t, sampleID, rows.IDAt(i))
		assert.Equal(t, want.eventType, typeAt(rows, i))
		assert.Equal(t, want.environment, rows.Environment.Values[rows.Environment.Keys[i]])
		assert.Equal(t, want.context, string(rows.ContextAt(i)))
		assert.Equal(t, want.version, rows.MetadataVersion[i])
		assert.Equal(t, want.traceID, rows.TraceIDAt(i))
		assert.Equal(t, want.publishedBy, rows.PublishedBy.Values[rows.PublishedBy.Keys[i]])
		assert.Equal(t, sampleTime, rows.DateTime[i])
		assert.Equal(t, sampleTime, rows.CommitTime[i])
	}
	assert.Equal(t, []string{sampleTrace}, rows.Traces)
}

func TestRowsAndMessagesShareTheirNumbers(t *testing.T) {
	t.Parallel()
	stream := [][]byte{
		relationMessage(outboxOID, "outbox", outbox...), beginMessage(sampleLSN, sampleTime),
		published(goodContent), insertMessage(outboxOID, sampleRow()...), logicalMessage(1, "other", "x"),
		published("nonsense"), insertMessage(outboxOID, sampleRow()...), published(goodContent), commitMessage(sampleLSN, sampleEnd, sampleTime),
	}
	for resume := range uint32(6) {
		d, rows := reading(at(sampleLSN, resume)), new(decode.Rows)
		feed(t, d, rows, stream...)
		var want []uint32
		for seq := resume + 1; seq <= 5; seq++ {
			if seq != 3 {
				want = append(want, seq)
			}
		}
		assert.Equal(t, want, append([]uint32(nil), rows.Seq...), "behind %d", resume)
		if resume < 3 {
			require.Len(t, rows.Rejects, 1)
			assert.Equal(t, at(sampleLSN, 3), rows.Rejects[0].Position)
		}
	}
}

func TestMessagesCountFromTheirPlaceInTheWAL(t *testing.T) {
	t.Parallel()
	for from, want := range map[pglogrepl.LSN]int{0: 0, 1: 1, sampleLSN: 1, sampleLSN + 1: 0} {
		d, rows := decode.NewDecoder(decode.Position{}), new(decode.Rows)
		d.AcceptMessagesFrom(from)
		feed(t, d, rows, beginMessage(sampleLSN, sampleTime), published(goodContent))
		assert.Equal(t, want, rows.Len(), "from %s", from)
		assert.Equal(t, at(sampleLSN, uint32(want)), d.Last(), "a message that is none has no number")
	}
}

func TestOtherMessagesAreSkipped(t *testing.T) {
	t.Parallel()
	d, rows := reading(decode.Position{}), new(decode.Rows)
	feed(t, d, rows, beginMessage(sampleLSN, sampleTime))
	for _, prefix := range []string{"", "diehard", "diehard.event2", "diehard.even", "DIEHARD.EVENT"} {
		require.Equal(t, decode.Other, feed(t, d, rows, logicalMessage(1, prefix, goodContent)), prefix)
	}
	require.True(t, rows.Empty())
	require.Zero(t, d.Last().Seq)
}

func TestAMessageOutsideOfATransactionIsStray(t *testing.T) {
	t.Parallel()
	d, rows := reading(decode.Position{}), new(decode.Rows)
	require.Equal(t, decode.NonTransactional, feed(t, d, rows, logicalMessage(0, event.MessagePrefix, goodContent)))
	require.Equal(t, decode.Other, feed(t, decode.NewDecoder(decode.Position{}), rows, logicalMessage(0, event.MessagePrefix, goodContent)))
	_, err := d.Decode(published(goodContent), rows)
	require.ErrorContains(t, err, "outside of a transaction")
	require.True(t, rows.Empty())
}

// badMessages are contents and why they are refused.
var badMessages = map[string]string{
	"":           "has no line of JSON before its context",
	"{}":         "has no line of JSON before its context",
	"\n{}":       "does not begin with a flat JSON object",
	"{}\n{}":     "v is missing",
	"[]\n{}":     "does not begin with a flat JSON object",
	"{\"v\":\n1": "does not begin with a flat JSON object",
	"{\"v\":1,\"id\":{},\"event_type\":\"t\"}\n{}":                           "does not begin with a flat JSON object",
	"{\"v\":1,\"id\":\"\\x\"}\n{}":                                           "does not begin with a flat JSON object",
	"{\"v\":1,\"id\":\"a\tb\"}\n{}":                                          "does not begin with a flat JSON object",
	"{\"v\":1 \"id\":1}\n{}":                                                 "does not begin with a flat JSON object",
	"{\"v\":1}x\n{}":                                                         "does not begin with a flat JSON object",
	"\xff\n{}":                                                               "is not UTF-8",
	replaced(`"v":1`, `"v":2`):                                               "has a version that this streamer does not know",
	replaced(`"v":1`, `"v":"1"`):                                             "has a version that this streamer does not know",
	replaced(`"v":1,`, ``):                                                   "v is missing",
	replaced(`"id"`, `"ID"`):                                                 "id is missing",
	replaced(`0193a1b2`, `0193a1b`):                                          "id is not a UUID",
	replaced(`"event_type"`, `"type"`):                                       "event_type is missing",
	replaced(`order_paid`, ``):                                               "event_type is empty",
	replaced(`order_paid`, strings.Repeat("x", 256)):                         "event_type is too long",
	replaced(`order_paid`, `a\u0000b`):                                       "event_type contains a zero byte",
	replaced(`"order_paid"`, `7`):                                            "event_type has a value of the wrong type",
	replaced(`"event_date_time"`, `"at"`):                                    "event_date_time is missing",
	replaced(`2026-11-23T12:34:56.789012Z`, `infinity`):                      "event_date_time is not a time as in RFC 3339",
	replaced(`2026-11`, `1026-11`):                                           "event_date_time is outside 1900-01-01 to 2299-12-31",
	replaced(`"v":1`, `"v":1,"metadata_version":-1`):                         "metadata_version is negative",
	replaced(`"v":1`, `"v":1,"metadata_version":1.5`):                        "metadata_version is not a 64-bit integer",
	replaced(`"v":1`, `"v":1,"environment":null`):                            "environment has a value of the wrong type",
	replaced(`"v":1`, `"v":1,"published_by":7`):                              "published_by has a value of the wrong type",
	replaced(`"v":1`, `"v":1,"published_by":"`+strings.Repeat("x", 256)+`"`): "published_by is too long",
	replaced(` {"a" : 1}`, ``):                                               "event_context is not JSON",
	replaced(` {"a" : 1}`, `{} {}`):                                          "event_context is not JSON",
	replaced(` {"a" : 1}`, "\"\xff\""):                                       "event_context is not UTF-8",
	replaced(` {"a" : 1}`, tooLarge()):                                       "event_context is too long",
}

func replaced(old, new string) string { return strings.Replace(goodContent, old, new, 1) }

func tooLarge() string { return `"` + strings.Repeat("x", event.MaxContextBytes-1) + `"` }

func badContents() []string {
	var all []string
	for content := range badMessages {
		if len(content) < 4096 {
			all = append(all, content)
		}
	}
	return all
}

func TestAMalformedMessageIsRejectedWithItsBytes(t *testing.T) {
	t.Parallel()
	for content, reason := range badMessages {
		d, rows := reading(decode.Position{}), new(decode.Rows)
		feed(t, d, rows, beginMessage(sampleLSN, sampleTime))
		require.Equal(t, decode.Row, feed(t, d, rows, published(content)))
		require.Len(t, rows.Rejects, 1)
		reject := rows.Rejects[0]
		assert.Equal(t, "message "+reason, reject.Reason)
		assert.Equal(t, at(sampleLSN, 1), reject.Position)
		assert.Equal(t, sampleTime, reject.CommitTime)
		tuple, err := decode.ParseTuple(reject.Raw)
		require.NoError(t, err)
		assert.Equal(t, content, string(tuple.Columns[0].Value))
		require.ErrorContains(t, tuple.Append(rows, reject.Position, 0), reason, "it is judged again in the same way")
	}
}

func TestARejectedMessageCanBeRetried(t *testing.T) {
	t.Parallel()
	raw := `{"columns":[{"name":"message","oid":17,"format":"b","value":"` + base64.StdEncoding.EncodeToString([]byte(goodContent)) + `"}]}`
	tuple, err := decode.ParseTuple(raw)
	require.NoError(t, err)
	rows := new(decode.Rows)
	require.NoError(t, tuple.Append(rows, at(sampleLSN, 1), sampleTime))
	assert.Equal(t, ` {"a" : 1}`, string(rows.ContextAt(0)))
	assert.Equal(t, sampleID, rows.IDAt(0))
}

func TestOfAMonstrousMessageOnlyTheBeginningIsKept(t *testing.T) {
	t.Parallel()
	for _, content := range []string{strings.Repeat("x", 8<<20), replaced(` {"a" : 1}`, `"`+strings.Repeat("x", 8<<20)+`"`)} {
		d, rows := reading(decode.Position{}), new(decode.Rows)
		feed(t, d, rows, beginMessage(sampleLSN, sampleTime), published(content))
		require.Len(t, rows.Rejects, 1)
		assert.Less(t, len(rows.Rejects[0].Raw), 2<<20)
		assert.Contains(t, rows.Rejects[0].Reason, "are kept")
		tuple, err := decode.ParseTuple(rows.Rejects[0].Raw)
		require.NoError(t, err)
		require.Error(t, tuple.Append(rows, at(sampleLSN, 1), 0), "what is left does not pass for an event")
	}
}

func TestTheLargestMessagePasses(t *testing.T) {
	t.Parallel()
	escaped := strings.Repeat(`\u0001`, event.MaxTypeBytes)
	content := strings.NewReplacer("order_paid", escaped, `"v":1`, `"v":1,"environment":"`+escaped+`","trace_context":"`+escaped+`","published_by":"`+escaped+`"`,
		` {"a" : 1}`, `"`+strings.Repeat("x", event.MaxContextBytes-2)+`"`).Replace(goodContent)
	d, rows := reading(decode.Position{}), new(decode.Rows)
	feed(t, d, rows, beginMessage(sampleLSN, sampleTime), published(content))
	require.Empty(t, rows.Rejects)
	assert.Len(t, rows.ContextAt(0), event.MaxContextBytes)
}

func TestATruncatedMessageEndsTheConnection(t *testing.T) {
	t.Parallel()
	whole := published(goodContent)
	for n := len("M") + 1 + 8 + len(event.MessagePrefix) + 1; n < len(whole); n++ {
		d, rows := reading(decode.Position{}), new(decode.Rows)
		feed(t, d, rows, beginMessage(sampleLSN, sampleTime))
		_, err := d.Decode(whole[:n:n], rows)
		require.ErrorContains(t, err, "truncated")
		require.True(t, rows.Empty())
	}
}

// What event.PublishMessages writes is what the decoder reads; this end is tested
// with PostgreSQL between the two in streamer/e2e.
func TestTimesOfMessagesAreInstants(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Time{
		"1900-01-01T00:00:00Z":           time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC),
		"2299-12-31T23:59:59.999999Z":    time.Date(2299, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
		"2026-01-01T00:30:00.5+05:30":    time.Date(2025, 12, 31, 19, 0, 0, 500_000_000, time.UTC),
		"2026-01-01T00:00:00.123456789Z": time.Date(2026, 1, 1, 0, 0, 0, 123_456_000, time.UTC),
	} {
		d, rows := reading(decode.Position{}), new(decode.Rows)
		feed(t, d, rows, beginMessage(sampleLSN, sampleTime), published(replaced("2026-11-23T12:34:56.789012Z", text)))
		require.Empty(t, rows.Rejects, text)
		assert.Equal(t, want.UnixMicro(), rows.DateTime[0], text)
		assert.NotEqual(t, uuid.Nil, rows.IDAt(0))
	}
}

func BenchmarkMessages(b *testing.B) {
	messages := [][]byte{beginMessage(sampleLSN, sampleTime)}
	for range 1000 {
		messages = append(messages, published(goodContent))
	}
	messages = append(messages, commitMessage(sampleLSN, sampleEnd, sampleTime))
	d, rows := reading(decode.Position{}), new(decode.Rows)
	feed(b, d, rows, messages...)
	b.ReportAllocs()
	for b.Loop() {
		rows.Reset()
		feed(b, d, rows, messages...)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*1000), "ns/message")
}
