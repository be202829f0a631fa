package sink

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

func TestDeadLettersKeepEverything(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	e := event(1)
	full := decode.Reject{
		Position: at(1<<63+5, 1<<32-1), CommitTime: sampleTime, ID: e.ID, Type: "sample",
		Raw: sample(1, 1).TupleAt(0).Encode(), Reason: "größe \x00 'quoted'", Code: 469,
	}
	unreadable := decode.Reject{Position: at(2, 1), CommitTime: sampleTime, Raw: "{}", Reason: "column id is NULL"}
	a := f.attempt()
	require.NoError(t, f.PutDeadLetters(t.Context(), []decode.Reject{full, unreadable}, a))

	type record struct {
		Source   string    `ch:"source"`
		LSN      uint64    `ch:"commit_lsn"`
		Seq      uint32    `ch:"commit_seq"`
		Timeline uint32    `ch:"timeline"`
		Commit   time.Time `ch:"commit_time"`
		ID       uuid.UUID `ch:"event_id"`
		Type     string    `ch:"event_type"`
		Raw      string    `ch:"raw"`
		Reason   string    `ch:"reason"`
		Code     int32     `ch:"error_code"`
		Failed   time.Time `ch:"failed_at"`
		Retried  time.Time `ch:"retried_at"`
		Dropped  bool      `ch:"dropped"`
	}
	var got []record
	require.NoError(t, f.ClickHouse.Select(t.Context(), &got, "SELECT * FROM event_dead_letter ORDER BY commit_lsn"))
	require.Len(t, got, 2)
	committed, failed, never := time.UnixMicro(sampleTime).UTC(), a.IngestedAt.UTC().Truncate(time.Millisecond), time.UnixMilli(0).UTC()
	assert.Equal(t, record{f.source.String(), 2, 1, timeline, committed, uuid.Nil, "", "{}", "column id is NULL", 0, failed, never, false}, got[0])
	assert.Equal(t, record{
		f.source.String(), 1<<63 + 5, 1<<32 - 1, timeline, committed, e.ID, "sample",
		full.Raw, full.Reason, 469, failed, never, false,
	}, got[1])
}

func TestATokenMakesADeadLetterOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	a := f.attempt()
	for range 2 {
		require.NoError(t, f.PutDeadLetters(t.Context(), []decode.Reject{{Position: at(1, 1), Raw: "{}"}}, a))
		a.QueryID += "-again"
	}
	assert.Equal(t, 1, f.count("event_dead_letter"))
}

func TestQueryPrefixesDoNotBeginEachOther(t *testing.T) {
	t.Parallel()
	sources := []Source{{"1", "a"}, {"1", "a_b"}, {"1", "a1"}, {"11", "a"}, {"1", "1"}}
	for i, a := range sources {
		for j, b := range sources {
			if i != j {
				assert.NotContains(t, b.QueryPrefix()+"nonce-1-1", a.QueryPrefix())
				assert.NotEqual(t, a.String(), b.String())
			}
		}
	}
}
