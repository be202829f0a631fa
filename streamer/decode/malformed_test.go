package decode_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/failure"
	"diehard/streamer/decode"
)

func TestEveryMessageCutAnywhereIsAnError(t *testing.T) {
	t.Parallel()
	messages := map[string][]byte{
		"begin":    beginMessage(sampleLSN, sampleTime),
		"commit":   commitMessage(sampleLSN, sampleEnd, sampleTime),
		"relation": relationMessage(outboxOID, "outbox", outbox...),
		"insert":   insertMessage(outboxOID, sampleRow()...),
		"rejected": insertMessage(outboxOID, with("event_type", null)...),
		"text":     insertMessage(outboxOID, with("id", asText(sampleID.String()))...),
	}
	for name, whole := range messages {
		for n := range len(whole) {
			d := decode.NewDecoder(decode.Position{})
			rows := new(decode.Rows)
			if name != "begin" {
				feed(t, d, rows, beginMessage(sampleLSN, sampleTime))
			}
			if name != "relation" {
				feed(t, d, rows, relationMessage(outboxOID, "outbox", outbox...))
			}
			// A slice of its own, so that reading on would be noticed.
			_, err := d.Decode(append(make([]byte, 0, n), whole[:n]...), rows)
			require.ErrorContains(t, err, "message is truncated", "%s of %d bytes cut to %d", name, len(whole), n)
			assert.Equal(t, failure.Transient, failure.Of(err))
			assert.True(t, rows.Empty(), "%s of %d bytes cut to %d", name, len(whole), n)
		}
	}
}

func TestMessagesThatMakeNoSense(t *testing.T) {
	t.Parallel()
	begin := beginMessage(sampleLSN, sampleTime)
	relation := relationMessage(outboxOID, "outbox", outbox...)
	insert := insertMessage(outboxOID, sampleRow()...)
	update := append([]byte{'U'}, insert[1:]...)
	claims := func(size uint32) []byte { // a column that claims more than there is
		b := be16(append(be32([]byte{'I'}, outboxOID), 'N'), uint16(len(outbox)))
		return append(be32(append(b, 'b'), size), make([]byte, 100)...)
	}
	manyColumns := be16(append(be32([]byte{'R'}, outboxOID), "public\x00outbox\x00d"...), 65_535)

	for name, c := range map[string]struct {
		before [][]byte
		last   []byte
		want   string
		class  failure.Class
	}{
		"unknown message":         {nil, []byte("?"), `unknown message '?'`, failure.Transient},
		"nested begin":            {[][]byte{begin}, begin, "transaction begins inside another", failure.Transient},
		"commit without begin":    {nil, commitMessage(sampleLSN, sampleEnd, 0), "commit outside of a transaction", failure.Transient},
		"row without begin":       {[][]byte{relation}, insert, "row outside of a transaction", failure.Transient},
		"row after commit":        {[][]byte{begin, relation, commitMessage(sampleLSN, sampleEnd, 0)}, insert, "row outside of a transaction", failure.Transient},
		"row of a stranger":       {[][]byte{begin}, insert, "relation 16384 was not announced", failure.Transient},
		"fewer columns":           {[][]byte{begin, relation}, insertMessage(outboxOID, sampleRow()[1:]...), "8 columns, relation outbox has 9", failure.Transient},
		"more columns":            {[][]byte{begin, relation}, insertMessage(outboxOID, append(sampleRow(), null)...), "10 columns, relation outbox has 9", failure.Transient},
		"unchanged TOAST":         {[][]byte{begin, relation}, insertMessage(outboxOID, with("event_context", datum{format: 'u'})...), "column event_context: is an unchanged TOAST value", failure.Transient},
		"unknown format":          {[][]byte{begin, relation}, insertMessage(outboxOID, with("environment", datum{format: 'x'})...), "column environment: column has an unknown format", failure.Transient},
		"old tuple":               {[][]byte{begin, relation}, append(be32([]byte{'I'}, outboxOID), "O\x00\x00"...), "insert: message is truncated", failure.Transient},
		"column of 4 GiB":         {[][]byte{begin, relation}, claims(1<<32 - 1), "message is truncated", failure.Transient},
		"column of 2 GiB":         {[][]byte{begin, relation}, claims(1 << 31), "message is truncated", failure.Transient},
		"column one byte too big": {[][]byte{begin, relation}, claims(101), "message is truncated", failure.Transient},
		"65535 columns":           {nil, manyColumns, "relation outbox: 65535 columns", failure.Transient},
		"update":                  {[][]byte{begin, relation}, update, "publish = 'insert'", failure.Fatal},
		"delete":                  {[][]byte{begin, relation}, []byte("D"), "publish = 'insert'", failure.Fatal},
		"truncate":                {[][]byte{begin}, []byte("T"), "publish = 'insert'", failure.Fatal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, rows := decode.NewDecoder(decode.Position{}), new(decode.Rows)
			feed(t, d, rows, c.before...)
			_, err := d.Decode(c.last, rows)
			require.ErrorContains(t, err, c.want)
			assert.True(t, strings.HasPrefix(err.Error(), "decode: "), err)
			assert.Equal(t, c.class, failure.Of(err))
			assert.True(t, rows.Empty())
		})
	}
}

func TestMessagesWithoutConsequence(t *testing.T) {
	t.Parallel()
	d, rows := decode.NewDecoder(decode.Position{}), new(decode.Rows)
	for _, m := range []string{"Y", "O", "M", "Y and what follows"} {
		assert.Equal(t, decode.Other, feed(t, d, rows, []byte(m)))
	}
	assert.True(t, rows.Empty())
	assert.False(t, d.InTransaction())
}

// A claimed length must never decide how much is allocated. Not parallel: it counts bytes.
func TestClaimedSizesAllocateNothing(t *testing.T) {
	d, rows := started(t, outbox...), new(decode.Rows)
	b := be16(append(be32([]byte{'I'}, outboxOID), 'N'), uint16(len(outbox)))
	b = be32(append(b, 'b'), 1<<31)
	before := allocatedBytes()
	_, err := d.Decode(b, rows)
	require.Error(t, err)
	assert.Less(t, allocatedBytes()-before, uint64(64<<10))
}

// allocatedBytes is what this process has allocated since its start.
func allocatedBytes() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestErrorsCarryNoValues(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	for _, c := range outbox {
		for _, format := range "tb" {
			rows := new(decode.Rows)
			d := started(t, outbox...)
			_, err := d.Decode(insertMessage(outboxOID, with(c.name, datum{byte(format), []byte(secret)})...), rows)
			require.NoError(t, err)
			for _, r := range rows.Rejects {
				assert.NotContains(t, r.Reason, secret, "%s in format %c", c.name, format)
			}
		}
	}
}
