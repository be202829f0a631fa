package sink

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

// stored is a row of event_log, as ClickHouse returns it.
type stored struct {
	ID          uuid.UUID `ch:"event_id"`
	Type        string    `ch:"event_type"`
	At          int64     `ch:"at"`
	Environment string    `ch:"environment"`
	Context     string    `ch:"event_context"`
	Version     uint64    `ch:"metadata_version"`
	TraceID     string    `ch:"trace_id"`
	PublishedBy string    `ch:"published_by"`
	Source      string    `ch:"source"`
	LSN         uint64    `ch:"commit_lsn"`
	Seq         uint32    `ch:"commit_seq"`
	Timeline    uint32    `ch:"timeline"`
	Commit      int64     `ch:"committed"`
	Ingested    int64     `ch:"ingested"`
}

func (f *fixture) stored() []stored {
	f.t.Helper()
	var all []stored
	require.NoError(f.t, f.ClickHouse.Select(f.t.Context(), &all, `
		SELECT event_id, event_type, toUnixTimestamp64Micro(event_date_time) AS at, environment, event_context, metadata_version, trace_id, published_by, source,
		       commit_lsn, commit_seq, timeline, toUnixTimestamp64Micro(commit_time) AS committed, toUnixTimestamp64Milli(ingested_at) AS ingested
		FROM event_log ORDER BY commit_lsn, commit_seq`))
	return all
}

func micros(t *testing.T, v string) int64 {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, v)
	require.NoError(t, err)
	return at.UnixMicro()
}

// Every column arrives exactly, at the limits of its type too.
func TestEveryColumnArrivesExactly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	earliest, latest := micros(t, "1900-01-01T00:00:00Z"), micros(t, "2299-12-31T23:59:59.999999Z")
	events := []decode.Event{
		event(1),
		{ID: uuid.Nil, Type: []byte("a"), DateTime: earliest, TraceID: [16]byte(uuid.Max), PublishedBy: []byte("größe")},
		{Type: []byte("traced"), TraceID: [16]byte{15: 1}},
		{ID: uuid.Max, Type: []byte("ünïcode 文字"), DateTime: latest, Environment: []byte("größe"), Context: []byte(`"文字"`), MetadataVersion: math.MaxUint64},
		{Type: []byte("\x00\xff 'quoted' \\ \n"), DateTime: -1, Environment: []byte("\x80"), Context: []byte("\x00\xff\xfe no UTF-8\n\n\r\t'\"\\")},
		{Type: []byte(strings.Repeat("t", 255)), Environment: []byte(strings.Repeat("e", 255)), Context: []byte(strings.Repeat("é", 1<<19))},
	}
	for _, n := range []int{0, 1, 127, 128, 16_383, 16_384} { // around the sizes where the length takes another byte
		e := event(n)
		e.Context = []byte(strings.Repeat("x", n))
		events = append(events, e)
	}
	rows := new(decode.Rows)
	for i := range events {
		p := at(pglogrepl.LSN(math.MaxUint64-uint64(len(events))+uint64(i)), math.MaxUint32-uint32(i))
		rows.Append(p, earliest+int64(i), &events[i])
	}
	a := f.attempt()
	require.NoError(t, f.Insert(t.Context(), rows, 0, rows.Len(), a))

	got := f.stored()
	require.Len(t, got, len(events))
	assert.Equal(t, strings.Repeat("f", 32), got[1].TraceID)
	assert.Equal(t, strings.Repeat("0", 31)+"1", got[2].TraceID)
	assert.Empty(t, got[0].TraceID)
	for i, e := range events {
		assert.Equal(t, stored{
			ID: e.ID, Type: string(e.Type), At: e.DateTime, Environment: string(e.Environment), Context: string(e.Context),
			Version: e.MetadataVersion, TraceID: rows.TraceIDAt(i), PublishedBy: string(e.PublishedBy), Source: "7000000000000000001/" + f.Slot, LSN: rows.LSN[i], Seq: rows.Seq[i],
			Timeline: timeline, Commit: rows.CommitTime[i], Ingested: a.IngestedAt.UnixMilli(),
		}, got[i])
	}
}

// The shortest key of a dictionary has 16 bits; all of its values must arrive.
func TestAsManyTypesAsADictionaryHolds(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 1 << 16
	rows := new(decode.Rows)
	for i := range n {
		e := decode.Event{Type: fmt.Append(nil, "type", i), Environment: fmt.Append(nil, "env", n-i)}
		rows.Append(at(1, uint32(i+1)), sampleTime, &e)
	}
	require.True(t, rows.Full())
	require.NoError(t, f.insert(rows, 0, n))
	assert.Equal(t, n, f.count("event_log WHERE event_type = 'type' || toString(commit_seq - 1) AND environment = 'env' || toString(65537 - commit_seq)"))
}

// What a buffer held for the insert before must not shine through the next.
func TestInsertsOfOneSinkDoNotMix(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	rows := new(decode.Rows)
	for i, size := range []int{1000, 3, 50_000, 0, 10} {
		rows.Reset()
		for j := range 5 - i {
			e := decode.Event{Type: fmt.Appendf(nil, "%d-%d", i, j), Environment: fmt.Append(nil, i), Context: []byte(strings.Repeat(fmt.Sprint(i), size))}
			rows.Append(at(pglogrepl.LSN(i+1), uint32(j+1)), sampleTime, &e)
		}
		require.NoError(t, f.insert(rows, 0, rows.Len()))
	}
	got := f.stored()
	require.Len(t, got, 5+4+3+2+1)
	for _, r := range got {
		i := r.LSN - 1
		assert.Equal(t, fmt.Sprintf("%d-%d", i, r.Seq-1), r.Type)
		assert.Equal(t, fmt.Sprint(i), r.Environment)
		assert.Empty(t, strings.Trim(r.Context, fmt.Sprint(i)))
	}
}

// A batch is written in pieces when some of its rows are refused.
func TestAnyRangeOfABatchIsWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 4
	rows := sample(1, n)
	for from := range n {
		for to := from + 1; to <= n; to++ {
			f.exec("TRUNCATE TABLE event_log")
			require.NoError(t, f.insert(rows, from, to))
			got := f.stored()
			require.Len(t, got, to-from)
			for i, r := range got {
				assert.Equal(t, uint32(from+i+1), r.Seq)
				assert.Equal(t, uuid.UUID(event(from+i).ID), r.ID)
				assert.Equal(t, string(event(from+i).Context), r.Context)
			}
		}
	}
}

func TestABatchIsOnePartWhateverItsMonths(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	rows := new(decode.Rows)
	for i := range 100 {
		e := event(i)
		e.DateTime = micros(t, "2020-01-01T00:00:00Z") + int64(i)*30*24*3_600_000_000
		rows.Append(at(1, uint32(i+1)), e.DateTime, &e)
	}
	require.NoError(t, f.insert(rows, 0, rows.Len()))
	assert.Equal(t, 1, f.count("system.parts WHERE database = currentDatabase() AND table = 'event_log' AND active"))
}

// One iteration is a row; the server's part of the time is included.
func BenchmarkInsert(b *testing.B) {
	f := newFixture(b)
	const n = 50_000
	rows := new(decode.Rows)
	for i := range n {
		e := event(i % 1000)
		e.Context = []byte(strings.Repeat("x", 250))
		rows.Append(at(1, uint32(i+1)), sampleTime, &e)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += n {
		id := fmt.Sprintf("bench-%s-%d", uuid.NewString(), i)
		a := InsertRequest{QueryID: id, Token: id, IngestedAt: time.Now(), Verify: holds}
		if err := f.Insert(b.Context(), rows, 0, min(n, b.N-i), a); err != nil {
			b.Fatal(err)
		}
	}
}
