package sink

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/streamer/decode"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const timeline = 3

// fixture is a Sink on a ClickHouse database of its own.
type fixture struct {
	*testenv.Env
	*Sink
	t       testing.TB
	inserts int
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{Env: testenv.New(t), t: t}
	f.Sink = f.as(Source{SystemID: "7000000000000000001", Slot: f.Slot})
	return f
}

// as returns a Sink for another source on the same tables.
func (f *fixture) as(s Source) *Sink {
	return New(f.ClickHouse, Tables{EventLog: "event_log", DeadLetter: "event_dead_letter"}, s, OnTimeline(timeline))
}

// attempt is a new one each time.
func (f *fixture) attempt() InsertRequest {
	f.inserts++
	id := fmt.Sprintf("%stest-%d", f.source.QueryPrefix(), f.inserts)
	return InsertRequest{QueryID: id, Token: id, IngestedAt: time.Now(), Verify: holds}
}

// holds is a Verify that finds the slot ours.
func holds(context.Context) error { return nil }

func (f *fixture) insert(rows *decode.Rows, from, to int) error {
	return f.Insert(f.t.Context(), rows, from, to, f.attempt())
}

func (f *fixture) exec(sql string) {
	f.t.Helper()
	require.NoError(f.t, f.ClickHouse.Exec(f.t.Context(), sql))
}

func (f *fixture) count(what string) int {
	f.t.Helper()
	var n uint64
	require.NoError(f.t, f.ClickHouse.QueryRow(f.t.Context(), "SELECT count() FROM "+what).Scan(&n))
	return int(n)
}

func at(lsn pglogrepl.LSN, seq uint32) decode.Position { return decode.Position{LSN: lsn, Seq: seq} }

const sampleTime = 1_700_000_000_123_456

func event(n int) decode.Event {
	return decode.Event{
		ID: uuid.NewSHA1(uuid.Nil, fmt.Append(nil, n)), Type: []byte("sample"), DateTime: sampleTime,
		Environment: []byte("Test"), Context: fmt.Appendf(nil, `{"n": %d}`, n), MetadataVersion: 1,
	}
}

// sample returns n rows of one transaction.
func sample(lsn pglogrepl.LSN, n int) *decode.Rows {
	rows := new(decode.Rows)
	for i := range n {
		e := event(i)
		rows.Append(at(lsn, uint32(i+1)), sampleTime, &e)
	}
	return rows
}
