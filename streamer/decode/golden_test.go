package decode_test

import (
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/streamer/decode"
)

// By hand only, after scenario.sql has changed or PostgreSQL has a new version:
// go test ./streamer/decode -run Golden -update
var update = flag.Bool("update", false, "record the streams in testdata/golden anew")

var modes = []string{"binary", "text"}

// The file expected.txt is written by hand: one expectation for every version and format.
func TestGoldenStreamsOfEveryVersion(t *testing.T) {
	want, err := os.ReadFile("testdata/golden/expected.txt")
	require.NoError(t, err)
	for _, version := range embedded.PostgresVersions {
		if *update {
			record(t, version)
		}
		for _, mode := range modes {
			t.Run(version+" "+mode, func(t *testing.T) {
				assert.Equal(t, string(want), describe(t, messagesOf(t, goldenFile(version, mode))))
			})
		}
	}
}

// A streamer that starts anywhere in the stream gets the rest of it.
func TestGoldenStreamResumesAtEveryRow(t *testing.T) {
	t.Parallel()
	messages := messagesOf(t, goldenFile("18", "binary"))
	whole := new(decode.Rows)
	feed(t, decode.NewDecoder(decode.Position{}), whole, messages...)
	all := positions(whole)
	require.Len(t, all, 46)
	for i, resume := range all {
		rest := new(decode.Rows)
		feed(t, decode.NewDecoder(resume), rest, messages...)
		require.Equal(t, append([]decode.Position(nil), all[i+1:]...), positions(rest))
	}
}

// The commit time of a transaction with an origin is not by the server's clock.
func TestATransactionWithAnOriginIsForeign(t *testing.T) {
	t.Parallel()
	for _, version := range embedded.PostgresVersions {
		d, rows, foreign := decode.NewDecoder(decode.Position{}), new(decode.Rows), []string{}
		for _, m := range messagesOf(t, goldenFile(version, "binary")) {
			if feed(t, d, rows, m) == decode.Row && d.Foreign() {
				foreign = append(foreign, typeAt(rows, 0))
			}
			rows.Reset()
		}
		assert.Equal(t, []string{"with_origin"}, foreign, version)
	}
}

func goldenFile(version, mode string) string {
	return filepath.Join("testdata", "golden", "pg"+version, mode+".bin")
}

// A recording is a sequence of pgoutput messages, each behind its length in four
// bytes, big-endian.
func messagesOf(t testing.TB, file string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err, "a golden file is missing: record it with -update")
	messages, ok := unframe(b)
	require.True(t, ok, "%s is cut", file)
	require.NotEmpty(t, messages)
	return messages
}

func unframe(b []byte) (messages [][]byte, ok bool) {
	for len(b) >= 4 {
		n := binary.BigEndian.Uint32(b)
		if uint64(n) > uint64(len(b)-4) {
			return messages, false
		}
		messages = append(messages, b[4:4+n:4+n])
		b = b[4+n:]
	}
	return messages, len(b) == 0
}

func frame(messages [][]byte) []byte {
	var b []byte
	for _, m := range messages {
		b = append(be32(b, uint32(len(m))), m...)
	}
	return b
}

// describe decodes messages into text. Positions and times of commits differ
// from recording to recording, so transactions are numbered, empty ones left out.
func describe(t testing.TB, messages [][]byte) string {
	t.Helper()
	d, rows := decode.NewDecoder(decode.Position{}), new(decode.Rows)
	var out strings.Builder
	var last decode.Position
	transactions, described := 0, true
	traces := ""
	for _, m := range messages {
		switch feed(t, d, rows, m) {
		case decode.Begin:
			require.True(t, d.Last().After(last), "transactions come in commit order")
			described = false
		case decode.Row:
			if !described {
				transactions, described = transactions+1, true
				fmt.Fprintf(&out, "transaction %d\n", transactions)
			}
			last = d.Last()
			describeRow(t, &out, rows, last)
			if len(rows.Traces) > 0 {
				traces += "trace of row " + fmt.Sprint(last.Seq) + " of " + fmt.Sprint(transactions) + ": " + rows.Traces[0] + "\n"
			}
			rows.Reset()
		case decode.Commit:
			require.Greater(t, d.CommitEnd(), d.Last().LSN)
		case decode.Other, decode.Skipped, decode.NonTransactional:
		}
	}
	require.False(t, d.InTransaction())
	return out.String() + traces
}

func describeRow(t testing.TB, out *strings.Builder, rows *decode.Rows, p decode.Position) {
	t.Helper()
	if len(rows.Rejects) > 0 {
		r := rows.Rejects[0]
		require.Equal(t, p, r.Position)
		fmt.Fprintf(out, "  %d reject %s %s: %s\n", r.Seq, r.ID, r.Type, r.Reason)
		return
	}
	require.Equal(t, p, rows.Position(0))
	require.WithinRange(t, time.UnixMicro(rows.CommitTime[0]), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Now())
	context := string(rows.ContextAt(0))
	if len(context) > 100 {
		context = fmt.Sprintf("%d bytes, SHA-256 %x", len(context), sha256.Sum256([]byte(context)))
	}
	origin := ""
	if by := rows.PublishedBy.Values[rows.PublishedBy.Keys[0]]; by != "postgres" {
		origin += " by " + by
	}
	if id := rows.TraceIDAt(0); id != "" {
		origin += " trace " + id
	}
	fmt.Fprintf(out, "  %d %s %s %s %q v%d%s: %s\n", p.Seq, rows.IDAt(0), typeAt(rows, 0),
		time.UnixMicro(rows.DateTime[0]).UTC().Format(time.RFC3339Nano), rows.Environment.Values[rows.Environment.Keys[0]],
		rows.MetadataVersion[0], origin, context)
}
