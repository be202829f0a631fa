package replay

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// spoil deletes 5 events, changes 3 and adds 2 rows: one that was never
// committed and one for the second time.
func (f *fixture) spoil() {
	f.t.Helper()
	f.remove("event_type = 'a' AND commit_seq <= 5")
	f.command(`ALTER TABLE event_log UPDATE event_context = '{"n":8}' WHERE event_type = 'a' AND commit_seq = 7 SETTINGS mutations_sync = 2`)
	f.command(`ALTER TABLE event_log UPDATE metadata_version = 9, environment = 'Else', trace_id = 'x', published_by = 'another' WHERE event_type = 'a' AND commit_seq IN (100, 101) SETTINGS mutations_sync = 2`)
	f.command(`INSERT INTO event_log SETTINGS async_insert = 0 SELECT * REPLACE (generateUUIDv4() AS event_id, commit_seq + 1000000 AS commit_seq)
		FROM (SELECT * FROM event_log WHERE event_type = 'a' AND commit_seq = 50)`)
	f.command(`INSERT INTO event_log SETTINGS async_insert = 0 SELECT * FROM event_log WHERE event_type = 'a' AND commit_seq = 60`)
}

func (f *fixture) spoilt(v Verdict, err error) {
	f.t.Helper()
	require.NoError(f.t, err)
	assert.True(f.t, v.Wrong())
	assert.Equal(f.t, []int64{350, 342, 5, 2, 3}, []int64{v.Read, v.Equal, v.Missing, v.Extra, v.Different})
	what := make(map[Kind]map[string]int)
	for _, d := range v.First {
		assert.NotEqual(f.t, uuid.Nil, d.ID)
		if d.Kind == Extra {
			assert.NotZero(f.t, d.Position, "event_log has the position")
		}
		if what[d.Kind] == nil {
			what[d.Kind] = make(map[string]int)
		}
		what[d.Kind][d.What]++
	}
	assert.Equal(f.t, map[string]int{"event_context": 1, "environment, metadata_version, trace_id, published_by": 2}, what[Different])
	assert.Equal(f.t, map[string]int{"": 5}, what[Missing])
	assert.Len(f.t, v.First, 10)
}

func TestVerifyFindsWhatDiffers(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.publish("a", 300)
	f.confirmed(f.publish("z", 50))
	stop := f.load()
	defer stop()
	c := f.config()
	for _, verify := range []func() (Verdict, error){
		func() (Verdict, error) { return VerifyWAL(t.Context(), c, Range{Bookmark: "b"}, 10) },
		func() (Verdict, error) { return VerifyTable(t.Context(), c, Span{}, 10) },
	} {
		verdict, err := verify()
		require.NoError(t, err)
		assert.False(t, verdict.Wrong(), "%+v", verdict)
		assert.Equal(t, verdict.Read, verdict.Equal)
		assert.GreaterOrEqual(t, verdict.Read, int64(350))
	}
}

func TestVerifyReportsWhatDiffers(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.publish("a", 300)
	f.confirmed(f.publish("z", 50))
	f.spoil()
	f.spoilt(VerifyWAL(t.Context(), f.config(), Range{Bookmark: "b"}, 10))
	f.spoilt(VerifyTable(t.Context(), f.config(), Span{}, 10))
	f.spoilt(VerifyTable(t.Context(), f.config(), Span{Since: time.Now().Add(-time.Hour), Until: time.Now().Add(time.Hour)}, 10))
	short, err := VerifyWAL(t.Context(), f.config(), Range{Bookmark: "b"}, 1)
	require.NoError(t, err)
	assert.Len(t, short.First, 1)

	early, err := VerifyTable(t.Context(), f.config(), Span{Until: time.Now().Add(-time.Hour)}, 10)
	require.NoError(t, err)
	assert.Equal(t, Verdict{}, early)
}

// A transaction that began before the span and ended in it is no extra row.
func TestVerifyFollowsTransactionsAcrossTheEdge(t *testing.T) {
	f := newFixture(t)
	f.stream()
	tx, err := f.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES ('long', '{}')")
	require.NoError(t, err)
	var between time.Time
	require.NoError(t, f.Pool.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&between))
	require.NoError(t, tx.Commit(t.Context()))
	f.confirmed(f.publish("short", 3))
	verdict, err := VerifyTable(t.Context(), f.config(), Span{Since: between}, 10)
	require.NoError(t, err)
	assert.Equal(t, Verdict{Read: 3, Equal: 3}, verdict)
}

// An id may be used more than once, also with other content, and in rows far from each other.
func TestVerifyComparesReusedIDsAsMultisets(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	id := uuid.New()
	reuse := func(n int) {
		f.exec("INSERT INTO outbox (id, event_type, event_context) VALUES ($1, 'reused', json_build_object('n', $2::int))", id, n)
	}
	reuse(1)
	reuse(2)
	f.publish("between", 250) // more than a chunk
	reuse(2)
	reuse(3)
	f.confirmed(f.publish("z", 1))
	verify := func() (list []Verdict) {
		t.Helper()
		table, err := VerifyTable(t.Context(), f.config(), Span{}, 10)
		require.NoError(t, err)
		wal, err := VerifyWAL(t.Context(), f.config(), Range{Bookmark: "b"}, 10)
		require.NoError(t, err)
		return []Verdict{table, wal}
	}
	for _, v := range verify() {
		assert.Equal(t, []int64{255, 255, 0, 0, 0}, []int64{v.Read, v.Equal, v.Missing, v.Extra, v.Different}, "%+v", v)
	}

	f.remove(`event_type = 'reused' AND event_context = '{"n" : 3}'`)
	for _, v := range verify() {
		assert.Equal(t, []int64{254, 1, 0, 0}, []int64{v.Equal, v.Missing, v.Extra, v.Different}, "%+v", v)
	}
	f.command(`INSERT INTO event_log SETTINGS async_insert = 0 SELECT * FROM event_log WHERE event_type = 'reused' AND event_context = '{"n" : 1}'`)
	for i, v := range verify() {
		want := []int64{254, 0, 0, 1} // one row too many takes the place of the one that is missing
		if i == 1 {
			want = []int64{254, 1, 1, 0} // by position
		}
		assert.Equal(t, want, []int64{v.Equal, v.Missing, v.Extra, v.Different}, "%+v", v)
	}
}
