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
	f.command(`ALTER TABLE event_log UPDATE metadata_version = 9, environment = 'Else' WHERE event_type = 'a' AND commit_seq IN (100, 101) SETTINGS mutations_sync = 2`)
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
			assert.NotZero(f.t, d.Position, "event_log tells the place")
		}
		if what[d.Kind] == nil {
			what[d.Kind] = make(map[string]int)
		}
		what[d.Kind][d.What]++
	}
	assert.Equal(f.t, map[string]int{"event_context": 1, "environment, metadata_version": 2}, what[Different])
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

func TestVerifyTellsWhatDiffers(t *testing.T) {
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
