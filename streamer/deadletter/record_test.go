package deadletter

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

func TestListShowsTheLastFailureFirst(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	assert.Empty(t, f.list(Filter{}))
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	unreadable := decode.Reject{Position: at(300, 2), CommitTime: commitTime, Raw: `{"columns":null}`, Reason: "column id is NULL"}
	f.putDeadLetters(noon.Add(-time.Hour), reject(at(500, 1), event(1, "old")))
	f.putDeadLetters(noon, reject(at(300, 1), event(2, "new")), unreadable, reject(at(400, 1), event(3, "new")))

	records := f.list(Filter{})
	require.Len(t, records, 4)
	assert.Equal(t, []decode.Position{at(400, 1), at(300, 2), at(300, 1), at(500, 1)},
		[]decode.Position{records[0].Position, records[1].Position, records[2].Position, records[3].Position})
	assert.Equal(t, Record{
		Source: f.source.String(), Position: at(400, 1), Timeline: timeline, CommitTime: time.UnixMicro(commitTime).UTC(),
		EventID: id(3), EventType: "new", Reason: "refused before", Code: 469, FailedAt: noon,
	}, records[0])
	assert.Equal(t, uuid.Nil, records[1].EventID)
	assert.Equal(t, "column id is NULL", records[1].Reason)

	limited, err := List(t.Context(), f.ClickHouse, f.tables.DeadLetter, Filter{}, 2)
	require.NoError(t, err)
	assert.Equal(t, records[:2], limited)
}

func TestFiltersChoose(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const odd = `it's \'a "type" {x:String} ? with 100% of all`
	f.putDeadLetters(time.Now(), reject(at(1, 1), event(1, "a")), reject(at(1, 2), event(2, odd)), reject(at(1, 3), event(3, "b")), reject(at(1, 4), event(4, "b")))
	chosen := func(filter Filter) []uuid.UUID {
		var ids []uuid.UUID
		for _, l := range f.list(filter) {
			ids = append(ids, l.EventID)
		}
		return ids
	}
	assert.ElementsMatch(t, []uuid.UUID{id(1), id(2), id(3), id(4)}, chosen(Filter{}))
	assert.ElementsMatch(t, []uuid.UUID{id(3)}, chosen(Filter{IDs: []uuid.UUID{id(3), id(99)}}))
	assert.ElementsMatch(t, []uuid.UUID{id(3), id(4)}, chosen(Filter{Types: []string{"b"}}))
	assert.ElementsMatch(t, []uuid.UUID{id(1), id(2)}, chosen(Filter{Types: []string{odd, "a"}}))
	assert.ElementsMatch(t, []uuid.UUID{id(4)}, chosen(Filter{IDs: []uuid.UUID{id(1), id(4)}, Types: []string{"b"}}))
	assert.Empty(t, chosen(Filter{Types: []string{"c"}}))
}

// The streamer may write a record a second time, also after it was retried.
func TestALetterWrittenTwiceIsOne(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(9, 1), event(9, "later"))
	for range 2 {
		f.putDeadLetters(time.Now(), reject(at(1, 1), event(1, "a")))
	}
	require.Len(t, f.list(Filter{}), 1)
	assert.Equal(t, Written, f.retry(Filter{})[id(1)].Result)
	f.putDeadLetters(time.Now(), reject(at(1, 1), event(1, "a")))
	assert.Empty(t, f.list(Filter{}), "retried stays retried")
	assert.Len(t, f.list(Filter{Retried: true}), 1)
}

func TestATableThatIsMissingIsNamed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := List(t.Context(), f.ClickHouse, "nothing_here", Filter{}, 1)
	require.ErrorContains(t, err, "nothing_here")
	f.exec("ALTER TABLE event_dead_letter DROP COLUMN dropped")
	_, err = List(t.Context(), f.ClickHouse, f.tables.DeadLetter, Filter{}, 1)
	require.ErrorContains(t, err, "streamer migrate up")
}
