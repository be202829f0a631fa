package replay

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/replication"
)

// mixed commits 100 rows and 100 messages, in turn, in one transaction.
func (f *fixture) mixed() {
	f.t.Helper()
	f.exec(`DO $$ BEGIN
		FOR i IN 1..100 LOOP
			PERFORM publish_event('row', '{}');
			PERFORM publish_event_message('message', json_build_object('n', i));
		END LOOP;
	END $$`)
}

// withoutMessages makes bookmark b and then one event, while messages are not read; behind it they are wanted.
func (f *fixture) withoutMessages() {
	f.t.Helper()
	stop := f.stream()
	f.bookmark("b")
	f.exec(`SELECT pg_logical_emit_message(true, 'diehard.event', 'it is not read'), publish_event('early', '{}')`)
	f.confirmed(f.walEnd())
	stop()
	f.origin.Messages = true
}

// The bookmark is older than the setting: transactions before it have no messages, those behind it do.
func TestMessagesComeBackFromTheWALToTheirPlaces(t *testing.T) {
	f := newFixture(t)
	f.withoutMessages()
	f.stream()
	f.mixed()
	f.exec(`SELECT pg_logical_emit_message(true, 'diehard.event', 'malformed')`)
	f.confirmed(f.walEnd())
	want := f.rows("event_log")
	require.Len(t, want, 201)
	require.Equal(t, 1, f.count("event_dead_letter", "reason LIKE 'message %'"))

	v, err := VerifyWAL(t.Context(), f.config(), Range{Bookmark: "b"}, 10)
	require.NoError(t, err)
	assert.False(t, v.Wrong(), "%+v", v)
	assert.Equal(t, []int64{202, 201, 1}, []int64{v.Read, v.Equal, v.DeadLetters})

	require.Equal(t, 50, f.remove("event_type = 'message' AND commit_seq % 4 = 0"))
	require.Equal(t, 1, f.remove("event_type = 'early'"))
	v, err = VerifyWAL(t.Context(), f.config(), Range{Bookmark: "b"}, 10)
	require.NoError(t, err)
	assert.Equal(t, []int64{51, 0, 0}, []int64{v.Missing, v.Extra, v.Different})
	report, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, []int64{202, 150, 1, 51}, []int64{report.Read, report.Present, report.DeadLetters, report.Filled})
	assert.Equal(t, want, f.rows("event_log"), "with their own positions")
}

// The outbox knows nothing of messages: they are neither extra nor missing.
func TestTheTableSaysThatItKnowsNoMessages(t *testing.T) {
	f := newFixture(t)
	f.origin.Messages = true
	f.stream()
	f.mixed()
	f.confirmed(f.walEnd())
	require.Equal(t, 7, f.remove("event_type = 'row' AND commit_seq < 14"))
	v, err := VerifyTable(t.Context(), f.config(), Span{}, 10)
	require.NoError(t, err)
	assert.True(t, v.Messages)
	assert.Equal(t, []int64{100, 93, 7, 0, 0}, []int64{v.Read, v.Equal, v.Missing, v.Extra, v.Different})
	report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.True(t, report.Messages)
	assert.Equal(t, []int64{100, 93, 7}, []int64{report.Read, report.Present, report.Filled})
	v, err = VerifyTable(t.Context(), f.config(), Span{}, 10)
	require.NoError(t, err)
	assert.False(t, v.Wrong(), "%+v", v)
	assert.Equal(t, 200, f.count("event_log", "true"))
}

// recreate is `streamer slot drop` and `streamer slot create`.
func (f *fixture) recreate() {
	f.t.Helper()
	c, err := replication.OpenControl(f.t.Context(), f.PostgresURL, "test", f.origin)
	require.NoError(f.t, err)
	defer c.Close(f.t.Context())
	require.NoError(f.t, c.DropSlot(f.t.Context()))
	_, err = c.ReplaceSlot(f.t.Context())
	require.NoError(f.t, err)
}

// A new slot does not change what was delivered by the one before.
func TestMessagesStayKnownWhenTheSlotIsMadeAnewWithoutThem(t *testing.T) {
	f := newFixture(t)
	f.origin.Messages = true
	stop := f.stream()
	f.bookmark("b")
	f.mixed()
	f.confirmed(f.walEnd())
	stop()
	want := f.rows("event_log")
	f.origin.Messages = false
	f.recreate()
	f.stream()
	f.confirmed(f.publish("late", 1))

	v, err := VerifyTable(t.Context(), f.config(), Span{}, 10)
	require.NoError(t, err)
	assert.False(t, v.Wrong(), "%+v", v)
	assert.True(t, v.Messages)
	v, err = VerifyWAL(t.Context(), f.config(), Range{Bookmark: "b"}, 10)
	require.NoError(t, err)
	assert.False(t, v.Wrong(), "%+v", v)
	require.Equal(t, 50, f.remove("event_type = 'message' AND commit_seq % 4 = 0"))
	report, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(50), report.Filled)
	assert.Subset(t, f.rows("event_log"), want, "at their own positions")
	_, err = f.Pool.Exec(t.Context(), "SELECT publish_event_message('message', '{}')")
	require.ErrorContains(t, err, "no streamer reads messages")
}

// Nor does a new slot that has them: before it messages took no numbers.
func TestMessagesBeginWithTheSlotThatIsMadeAnewForThem(t *testing.T) {
	f := newFixture(t)
	f.withoutMessages()
	f.recreate()
	f.stream()
	f.mixed()
	f.confirmed(f.walEnd())
	want := f.rows("event_log")
	require.Len(t, want, 201)
	report, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, []int64{201, 201, 0}, []int64{report.Read, report.Present, report.Missing})
	assert.Equal(t, want, f.rows("event_log"))
}
