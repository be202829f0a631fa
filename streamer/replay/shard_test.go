package replay

import (
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/replication"
)

// shard is the same outbox under the setting of a shard, whose publication and
// slot are made as by `streamer migrate up`.
func (f *fixture) shard(index, count int) *fixture {
	f.t.Helper()
	env, from := *f.Env, f.origin
	from.Shard = replication.Shard{Index: index, Count: count}
	env.Slot, env.Publication = from.SlotName(), from.PublicationName()
	c, err := replication.OpenControl(f.t.Context(), f.PostgresURL, "test", from)
	require.NoError(f.t, err)
	defer c.Close(f.t.Context())
	require.NoError(f.t, c.CreatePublications(f.t.Context()))
	_, err = c.EnsureSlot(f.t.Context())
	require.NoError(f.t, err)
	return &fixture{Env: &env, t: f.t, tables: f.tables, origin: from}
}

func (f *fixture) confirmedLSN() pglogrepl.LSN {
	f.t.Helper()
	return f.lsn("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", f.Slot)
}

// divided is an outbox that one streamer delivered from, and two shards do since.
// The bookmark "b" of each shard is older than its first event.
func divided(t *testing.T) (whole *fixture, shards []*fixture) {
	t.Helper()
	whole = newFixture(t)
	if whole.Major(whole.t) < 15 {
		t.Skip("row filters came with PostgreSQL 15")
	}
	whole.command("ALTER TABLE event_log ADD CONSTRAINT c CHECK event_type != 'bad'")
	stop := whole.stream()
	whole.publish("first", 20)
	shards = []*fixture{whole.shard(1, 2), whole.shard(2, 2)}
	for _, s := range shards {
		s.bookmark("b")
	}
	whole.publish("whole", 40)
	whole.publish("bad", 10)
	whole.confirmed(whole.publish("whole", 40))
	stop()
	begin := whole.confirmedLSN()
	for _, s := range shards {
		s.start = begin
		s.stream()
	}
	end := whole.publish("shards", 100)
	for _, s := range shards {
		s.confirmed(end)
	}
	return whole, shards
}

// What the streamer wrote before it was sharded, dead letters included, is present.
func TestAShardsReplayKnowsWhatWasWrittenBeforeTheShard(t *testing.T) {
	whole, shards := divided(t)
	want := whole.rows("event_log")
	require.Len(t, want, 200)
	var read, equal, deadLetters int64
	for _, s := range shards {
		v, err := VerifyWAL(t.Context(), s.config(), Range{Bookmark: "b"}, 10)
		require.NoError(t, err)
		assert.False(t, v.Wrong(), "%+v", v)
		read, equal, deadLetters = read+v.Read, equal+v.Equal, deadLetters+v.DeadLetters
		report, err := FromWAL(t.Context(), s.config(), Range{Bookmark: "b"}, Mode{})
		require.NoError(t, err)
		assert.Zero(t, report.Missing, "%+v", report)
		assert.Equal(t, []int64{v.Read, v.Equal, v.DeadLetters}, []int64{report.Read, report.Present, report.DeadLetters})
	}
	assert.Equal(t, []int64{190, 180, 10}, []int64{read, equal, deadLetters}, "by both shards")
	assert.Equal(t, want, whole.rows("event_log"))
	assert.Equal(t, 10, whole.count("event_dead_letter", "true"))
}

// What is missing from then is filled once, by the shard that it would be of.
func TestAShardsReplayFillsWhatIsMissingFromBefore(t *testing.T) {
	whole, shards := divided(t)
	require.Equal(t, 8, whole.remove("event_type = 'whole' AND JSONExtractInt(event_context, 'n') % 10 = 0"))
	var filled int64
	for range 2 {
		for _, s := range shards {
			mark, err := s.bookmarks().Get(t.Context(), "b")
			require.NoError(t, err)
			report, err := FromWAL(t.Context(), s.config(), Range{From: mark.Slot.ConfirmedFlush}, Mode{})
			require.NoError(t, err)
			filled += report.Filled
		}
	}
	assert.Equal(t, int64(8), filled)
	assert.Equal(t, 200, whole.count("(SELECT DISTINCT event_id FROM event_log)", "true"))
	assert.Equal(t, 200, whole.count("event_log", "true"))
}
