package deadletter

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func (f *fixture) drop(filter Filter) int {
	f.t.Helper()
	n, err := Drop(f.t.Context(), f.PostgresURL, f.ClickHouse, f.tables, filter)
	require.NoError(f.t, err)
	return n
}

func (f *fixture) ids(filter Filter) (ids []uuid.UUID) {
	f.t.Helper()
	for _, l := range f.list(filter) {
		ids = append(ids, l.EventID)
	}
	return ids
}

func TestADroppedDeadLetterIsNotOpenAndStaysKnown(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(9, "later"))
	records := []int{1, 2, 3, 4}
	for _, n := range records {
		f.putDeadLetters(time.Now(), reject(at(500, uint32(n)), event(n, "a")))
	}
	before := time.Now().Truncate(time.Millisecond)
	assert.Equal(t, 1, f.drop(Filter{IDs: []uuid.UUID{id(1), id(99)}}))
	assert.Equal(t, Written, f.retry(Filter{IDs: []uuid.UUID{id(2)}})[id(2)].Result)
	assert.Equal(t, 0, f.drop(Filter{IDs: []uuid.UUID{id(1), id(2)}, Retried: true, Dropped: true}), "neither what is dropped nor what was written")
	assert.Equal(t, 0, f.drop(Filter{Types: []string{"b"}}))

	assert.ElementsMatch(t, []uuid.UUID{id(3), id(4)}, f.ids(Filter{}))
	assert.ElementsMatch(t, []uuid.UUID{id(1), id(3), id(4)}, f.ids(Filter{Dropped: true}))
	assert.ElementsMatch(t, []uuid.UUID{id(2), id(3), id(4)}, f.ids(Filter{Retried: true}))
	assert.Len(t, f.ids(Filter{Retried: true, Dropped: true}), 4)
	for _, l := range f.list(Filter{IDs: []uuid.UUID{id(1)}, Dropped: true}) {
		assert.WithinRange(t, l.DroppedAt, before, time.Now())
		assert.Zero(t, l.RetriedAt)
		assert.Equal(t, "refused before", l.Reason, "the record stays what it was")
	}
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "a")))
	assert.NotContains(t, f.ids(Filter{}), id(1), "dropped stays dropped")
	assert.Equal(t, 2, f.drop(Filter{}))
	assert.Empty(t, f.retry(Filter{}))
	assert.Equal(t, map[uuid.UUID]int{id(9): 1, id(2): 1}, f.rows())
}

func TestADroppedDeadLetterIsRetried(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(9, "later"))
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "a")))
	require.Equal(t, 1, f.drop(Filter{}))
	// By a clock that is ahead of ours.
	f.exec("INSERT INTO event_dead_letter SELECT * REPLACE (retried_at + INTERVAL 1 HOUR AS retried_at) FROM event_dead_letter FINAL")
	assert.Equal(t, Written, f.retry(Filter{Dropped: true})[id(1)].Result)
	assert.Empty(t, f.retry(Filter{Dropped: true}))
	assert.Equal(t, map[uuid.UUID]int{id(9): 1, id(1): 1}, f.rows())
	all := f.list(Filter{Retried: true})
	require.Len(t, all, 1)
	assert.Zero(t, all[0].DroppedAt)
	assert.NotZero(t, all[0].RetriedAt)
}

func TestNothingIsDroppedDuringARetry(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "a")))
	f.retrier()
	_, err := Drop(t.Context(), f.PostgresURL, f.ClickHouse, f.tables, Filter{})
	require.ErrorIs(t, err, ErrBusy)
	assert.Len(t, f.list(Filter{}), 1)
}
