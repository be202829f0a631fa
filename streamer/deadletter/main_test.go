package deadletter

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fixture is a slot, and a streamer's end of it: what a streamer was written and
// written to the dead-letter table.
type fixture struct {
	*testenv.Env
	t         *testing.T
	source    sink.Source
	tables    sink.Tables
	sink      *sink.Sink
	confirmed pglogrepl.LSN // by the slot
	inserts   int
}

const timeline = 7

func newFixture(t *testing.T) *fixture {
	t.Helper()
	env := testenv.New(t)
	f := &fixture{Env: env, t: t, tables: sink.Tables{EventLog: "event_log", DeadLetter: "event_dead_letter"}}
	var system, confirmed string
	_, err := env.Pool.Exec(t.Context(), `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, env.Slot)
	require.NoError(t, err)
	err = env.Pool.QueryRow(t.Context(), `SELECT system_identifier::text, confirmed_flush_lsn::text
		FROM pg_control_system(), pg_replication_slots WHERE slot_name = $1`, env.Slot).Scan(&system, &confirmed)
	require.NoError(t, err)
	f.confirmed, err = pglogrepl.ParseLSN(confirmed)
	require.NoError(t, err)
	f.useSource(sink.Source{SystemID: system, Slot: env.Slot})
	return f
}

func (f *fixture) useSource(s sink.Source) {
	f.source = s
	f.sink = sink.New(f.ClickHouse, f.tables, s, sink.OnTimeline(timeline))
}

// event is the sample event number n, of a type.
func event(n int, kind string) decode.Event {
	return decode.Event{
		ID: id(n), Type: []byte(kind), DateTime: 1_700_000_000_000_000 + int64(n), Environment: []byte("Test"),
		Context: fmt.Appendf(nil, `{"n": %d}`, n), MetadataVersion: uint64(n),
		TraceID: id(n), PublishedBy: []byte("shop"),
	}
}

func id(n int) uuid.UUID { return uuid.NewSHA1(uuid.Nil, fmt.Append(nil, n)) }

func at(lsn pglogrepl.LSN, seq uint32) decode.Position { return decode.Position{LSN: lsn, Seq: seq} }

const commitTime = 1_700_000_000_123_456

func (f *fixture) attempt() sink.InsertRequest {
	f.inserts++
	token := fmt.Sprintf("%stest-%d", f.source.QueryPrefix(), f.inserts)
	return sink.InsertRequest{QueryID: token, Token: token, IngestedAt: time.Now(), Verify: f.alive}
}

// write puts a row into event_log, as the streamer does.
func (f *fixture) write(p decode.Position, e decode.Event) {
	f.t.Helper()
	rows := new(decode.Rows)
	rows.Append(p, commitTime, &e)
	require.NoError(f.t, f.sink.Insert(f.t.Context(), rows, 0, 1, f.attempt()))
}

// putDeadLetters puts rows into the dead-letter table, as the streamer does with rows
// that ClickHouse refused.
func (f *fixture) putDeadLetters(failedAt time.Time, rejects ...decode.Reject) {
	f.t.Helper()
	a := f.attempt()
	a.IngestedAt = failedAt
	require.NoError(f.t, f.sink.PutDeadLetters(f.t.Context(), rejects, a))
}

// reject is a row that ClickHouse refused.
func reject(p decode.Position, e decode.Event) decode.Reject {
	rows := new(decode.Rows)
	rows.Append(p, commitTime, &e)
	return decode.Reject{
		Position: p, CommitTime: commitTime, ID: e.ID, Type: string(e.Type),
		Raw: rows.TupleAt(0).Encode(), Reason: "refused before", Code: 469,
	}
}

func (f *fixture) exec(sql string) {
	f.t.Helper()
	require.NoError(f.t, f.ClickHouse.Exec(f.t.Context(), sql))
}

func (f *fixture) retrier() *Retrier {
	f.t.Helper()
	r, err := NewRetrier(f.t.Context(), f.PostgresURL, f.ClickHouse, f.tables)
	require.NoError(f.t, err)
	f.t.Cleanup(r.Close)
	return r
}

// retry runs one retry and returns what became of each event.
func (f *fixture) retry(filter Filter) map[uuid.UUID]Outcome {
	f.t.Helper()
	r := f.retrier()
	defer r.Close()
	outcomes := make(map[uuid.UUID]Outcome)
	err := r.Retry(f.t.Context(), filter, func(o Outcome) {
		require.NotContains(f.t, outcomes, o.EventID, "reported once")
		outcomes[o.EventID] = o
	})
	require.NoError(f.t, err)
	return outcomes
}

func (f *fixture) list(filter Filter) []Record {
	f.t.Helper()
	records, err := List(f.t.Context(), f.ClickHouse, f.tables.DeadLetter, filter, 100_000)
	require.NoError(f.t, err)
	return records
}

// rows counts event_log by event id.
func (f *fixture) rows() map[uuid.UUID]int {
	f.t.Helper()
	rows, err := f.ClickHouse.Query(f.t.Context(), "SELECT event_id, count() FROM event_log GROUP BY event_id")
	require.NoError(f.t, err)
	defer rows.Close()
	counts := make(map[uuid.UUID]int)
	for rows.Next() {
		var id uuid.UUID
		var n uint64
		require.NoError(f.t, rows.Scan(&id, &n))
		counts[id] = int(n)
	}
	require.NoError(f.t, rows.Err())
	return counts
}
