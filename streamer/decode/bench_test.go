package decode_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

// typicalRows are messages of a transaction with n rows of a dozen types and
// contexts of some 250 bytes.
func typicalRows(n int) [][]byte {
	messages := [][]byte{beginMessage(sampleLSN, sampleTime), relationMessage(outboxOID, "outbox", outbox...)}
	for i := range n {
		row := sampleRow()
		id := uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i))
		row[0] = asBinary(id[:])
		row[1] = binaryString([]string{
			"user_created", "user_updated", "user_deleted", "order_created", "order_paid", "order_shipped",
			"order_cancelled", "login_succeeded", "login_failed", "password_changed", "email_confirmed", "invoice_sent",
		}[i%12])
		row[4] = binaryString(fmt.Sprintf(`{"number": %d, "text": %q}`, i, strings.Repeat("x", 225)))
		row[6] = null
		messages = append(messages, insertMessage(outboxOID, row...))
	}
	return append(messages, commitMessage(sampleLSN, sampleEnd, sampleTime))
}

func decodeOnce(t testing.TB, messages [][]byte, rows *decode.Rows) {
	t.Helper()
	d := decode.NewDecoder(decode.Position{})
	for _, m := range messages {
		if _, err := d.Decode(m, rows); err != nil {
			t.Fatal(err)
		}
	}
}

// Once the buffers have their size, a row costs no allocation. Not parallel: it counts allocations.
func TestARowAllocatesNothing(t *testing.T) {
	messages := typicalRows(10_000)
	rows := new(decode.Rows)
	decodeOnce(t, messages, rows)
	require.Equal(t, 10_000, rows.Len())
	d := decode.NewDecoder(decode.Position{})
	feed(t, d, rows, messages[:2]...)
	i := 2
	allocations := testing.AllocsPerRun(5_000, func() {
		if i%1_000 == 0 {
			rows.Reset()
		}
		if _, err := d.Decode(messages[i], rows); err != nil {
			t.Fatal(err)
		}
		i++
	})
	// A new batch learns its dozen types anew: that is less than one in a hundred rows.
	assert.Zero(t, allocations)
}

func benchmark(b *testing.B, messages [][]byte) {
	b.Helper()
	rows := new(decode.Rows)
	decodeOnce(b, messages, rows)
	size := 0
	for _, m := range messages {
		size += len(m)
	}
	b.SetBytes(int64(size) / int64(rows.Len()))
	b.ReportAllocs()
	d := decode.NewDecoder(decode.Position{LSN: 0, Seq: 0})
	feed(b, d, rows, messages[:2]...)
	inserts := messages[2 : len(messages)-1]
	b.ResetTimer()
	for i := range b.N {
		n := i % len(inserts)
		if n == 0 {
			rows.Reset()
		}
		if _, err := d.Decode(inserts[n], rows); err != nil {
			b.Fatal(err)
		}
	}
}

// One iteration is one row.
func BenchmarkRow(b *testing.B) { benchmark(b, typicalRows(50_000)) }

// Small contexts show what a row costs besides copying.
func BenchmarkSmallRow(b *testing.B) {
	row := sampleRow()
	row[6] = null
	messages := [][]byte{beginMessage(sampleLSN, sampleTime), relationMessage(outboxOID, "outbox", outbox...)}
	for range 10_000 {
		messages = append(messages, insertMessage(outboxOID, row...))
	}
	benchmark(b, append(messages, commitMessage(sampleLSN, sampleEnd, sampleTime)))
}

func BenchmarkTextRow(b *testing.B) {
	row := []datum{
		asText(sampleID.String()), asText("user_created"), asText("2026-11-23 12:34:56.789012+00"), asText("Production"),
		asText(`{"a": 1}`), asText("3"), null, asText("2026-11-23 12:34:56.789012+00"), asText("shop"),
	}
	messages := [][]byte{beginMessage(sampleLSN, sampleTime), relationMessage(outboxOID, "outbox", outbox...)}
	for range 10_000 {
		messages = append(messages, insertMessage(outboxOID, row...))
	}
	benchmark(b, append(messages, commitMessage(sampleLSN, sampleEnd, sampleTime)))
}

// One iteration is a transaction of one row.
func BenchmarkTransaction(b *testing.B) {
	d, rows := decode.NewDecoder(decode.Position{}), new(decode.Rows)
	feed(b, d, rows, relationMessage(outboxOID, "outbox", outbox...))
	transaction := [][]byte{
		beginMessage(sampleLSN, sampleTime), insertMessage(outboxOID, with("trace_context", null)...),
		commitMessage(sampleLSN, sampleEnd, sampleTime),
	}
	b.ReportAllocs()
	for i := range b.N {
		if i%10_000 == 0 {
			rows.Reset()
		}
		for _, m := range transaction {
			if _, err := d.Decode(m, rows); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// One iteration is a row that is already written.
func BenchmarkSkippedRow(b *testing.B) {
	d, rows := decode.NewDecoder(decode.Position{LSN: sampleLSN + 1}), new(decode.Rows)
	feed(b, d, rows, beginMessage(sampleLSN, sampleTime), relationMessage(outboxOID, "outbox", outbox...))
	row := insertMessage(outboxOID, sampleRow()...)
	b.ReportAllocs()
	for range b.N {
		if _, err := d.Decode(row, rows); err != nil {
			b.Fatal(err)
		}
	}
}
