package replay

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

func TestDeletedRowsComeBackFromTheWAL(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.publish("before", 10)
	mark := f.bookmark("noon")
	from := f.publish("early", 250)
	to := f.publish("gone", 350)
	f.confirmed(f.publish("late", 30))
	want := f.rows("event_log")
	require.Len(t, want, 640)
	require.Equal(t, 90, f.remove("event_type = 'gone' AND JSONExtractInt(event_context, 'n') % 4 = 0 OR event_type = 'late' AND commit_seq <= 3"))

	stop := f.load()
	report, err := FromWAL(t.Context(), f.config(), Range{From: from, To: to}, Mode{})
	require.NoError(t, err)
	stop()
	assert.Equal(t, Report{From: from, To: to, Read: 350, Present: 263, Missing: 87, Filled: 87, Took: report.Took}, report)

	report, err = FromWAL(t.Context(), f.config(), Range{Bookmark: "noon"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, mark.Slot.ConfirmedFlush, report.From)
	assert.Equal(t, int64(3), report.Filled, "what lies behind --to-lsn was left alone before")
	f.complete()
	assert.Subset(t, f.rows("event_log"), want, "the rows are what they were, with their own positions")

	report, err = FromWAL(t.Context(), f.config(), Range{Bookmark: "noon"}, Mode{})
	require.NoError(t, err)
	assert.Zero(t, report.Missing)
	assert.Equal(t, report.Read, report.Present)
}

// The streamer goes on exactly, wherever it restarts, when its own last rows were deleted and filled.
func TestTheLastRowsComeBackAndTheStreamerGoesOn(t *testing.T) {
	f := newFixture(t)
	stop := f.stream()
	f.bookmark("b")
	f.publish("first", 120)
	f.confirmed(f.publish("last", 120))
	require.Equal(t, 200, f.remove("event_type = 'last' OR commit_seq > 40"))
	report, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(200), report.Filled)
	stop()
	f.publish("while stopped", 50)
	f.stream()
	f.complete()
}

func TestADryRunOnlyCounts(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.confirmed(f.publish("a", 100))
	f.remove("commit_seq <= 10")
	for range 2 {
		report, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{DryRun: true})
		require.NoError(t, err)
		assert.Equal(t, int64(10), report.Missing)
		assert.Zero(t, report.Filled)
	}
	assert.Equal(t, 90, f.count("event_log", "true"))
}

// A view shows what a replica that is behind shows: its rows to a sequential query alone.
func TestAReplayReadsWithSequentialConsistency(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.confirmed(f.publish("a", 100))
	f.command("CREATE VIEW behind AS SELECT * FROM event_log WHERE toBool(getSetting('select_sequential_consistency'))")
	c := f.config()
	c.Tables.EventLog = "behind"
	report, err := FromWAL(t.Context(), c, Range{Bookmark: "b"}, Mode{DryRun: true})
	require.NoError(t, err)
	assert.Equal(t, int64(100), report.Present)
	report, err = FromTable(t.Context(), c, Span{}, Mode{DryRun: true})
	require.NoError(t, err)
	assert.Equal(t, int64(100), report.Present)
	v, err := VerifyWAL(t.Context(), c, Range{Bookmark: "b"}, 10)
	require.NoError(t, err)
	assert.False(t, v.Wrong())
}

func TestAReplayThatIsInterruptedCanBeRepeated(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.confirmed(f.publish("a", 1000))
	f.remove("true")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := f.config()
	written := 0
	interrupting := func(ctx context.Context) bool {
		written = f.count("event_log", "true")
		return ctx.Err() == nil && written >= 300
	}
	done := make(chan error, 1)
	go func() {
		_, err := FromWAL(ctx, c, Range{Bookmark: "b"}, Mode{})
		done <- err
	}()
	await.True(f.t, func() bool { return interrupting(ctx) }, "300 rows are filled")
	cancel()
	if err := <-done; err != nil {
		require.ErrorIs(t, err, context.Canceled)
	}
	report, err := FromWAL(t.Context(), c, Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(1000), report.Read)
	assert.Equal(t, int64(1000), report.Present+report.Filled)
	f.complete()
	assert.Empty(t, f.replaySlots(), "the copies of the bookmark are gone")
}

// replaySlots are the copies that replays make.
func (f *fixture) replaySlots() []string {
	var names []string
	await.True(f.t, func() bool {
		err := f.Pool.QueryRow(f.t.Context(), `SELECT coalesce(array_agg(slot_name::text), '{}') FROM pg_replication_slots
			WHERE database = current_database() AND slot_name LIKE 'diehard_replay_%'`).Scan(&names)
		require.NoError(f.t, err)
		return len(names) == 0
	}, "no copy is left")
	return names
}

func TestReprocessingIntoAnotherTable(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.confirmed(f.publish("a", 300))
	into := Mode{Into: "second"}
	_, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, into)
	require.ErrorContains(t, err, "CREATE TABLE second AS event_log")
	f.command("CREATE TABLE second AS event_log")
	for _, filled := range []int64{300, 0} {
		report, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, into)
		require.NoError(t, err)
		assert.Equal(t, filled, report.Filled)
	}
	assert.Equal(t, f.rows("event_log"), f.rows("second"))
	for _, name := range []string{"event_log", "event_dead_letter"} {
		_, err = FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{Into: name})
		require.ErrorContains(t, err, "--into "+name)
	}
	_, err = FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{Into: "second` SELECT 1 -- "})
	require.ErrorContains(t, err, "--into: \"second` SELECT 1 -- \" is not a name")
}

func TestWhatCannotBeServedIsExplained(t *testing.T) {
	f := newFixture(t)
	f.stream()
	start := f.walEnd()
	_, err := FromWAL(t.Context(), f.config(), Range{From: start}, Mode{})
	require.ErrorContains(t, err, "there are none")
	require.ErrorContains(t, err, "--from-table")
	f.confirmed(f.publish("a", 10))
	mark := f.bookmark("late")
	_, err = FromWAL(t.Context(), f.config(), Range{From: start}, Mode{})
	require.ErrorContains(t, err, "there are late at "+mark.Slot.ConfirmedFlush.String())
	_, err = FromWAL(t.Context(), f.config(), Range{Bookmark: "early"}, Mode{})
	require.ErrorIs(t, err, ErrNoBookmark)
	_, err = FromWAL(t.Context(), f.config(), Range{From: f.walEnd() + 1<<30}, Mode{})
	require.ErrorContains(t, err, "is still to be delivered, not missing")
	_, err = FromWAL(t.Context(), f.config(), Range{Bookmark: "late", To: start}, Mode{})
	require.ErrorContains(t, err, "lies before the start")
}

// Rows that ClickHouse refused wait in the dead-letter table and are left to `deadletter retry`.
func TestDeadLettersAreNotMissing(t *testing.T) {
	f := newFixture(t)
	f.command("ALTER TABLE event_log ADD CONSTRAINT c CHECK event_type != 'bad'")
	f.stream()
	f.bookmark("b")
	f.publish("a", 100)
	f.confirmed(f.publish("bad", 3))
	report, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, Report{From: report.From, To: report.To, Read: 103, Present: 100, DeadLetters: 3, Took: report.Took}, report)

	f.command("ALTER TABLE event_dead_letter DELETE WHERE commit_seq = 2 SETTINGS mutations_sync = 2")
	report, err = FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, Report{From: report.From, To: report.To, Read: 103, Present: 100, DeadLetters: 2, Missing: 1, Refused: 1, Took: report.Took}, report)
	assert.Equal(t, 3, f.count("event_dead_letter", "true"), "it is a dead letter again")
}

func TestTablesOfAnOlderVersionAreNotAskedForEver(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.command("ALTER TABLE event_dead_letter DROP COLUMN dropped")
	_, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.ErrorContains(t, err, "run `streamer migrate up`")
	_, err = VerifyTable(t.Context(), f.config(), Span{}, 1)
	require.ErrorContains(t, err, "run `streamer migrate up`")
}

func TestBookmarks(t *testing.T) {
	f := newFixture(t)
	marks := f.bookmarks()
	_, err := marks.Add(t.Context(), "a")
	require.ErrorContains(t, err, "when it first runs")
	f.stream()
	a := f.bookmark("a")
	assert.Equal(t, "a", a.Name)
	assert.Positive(t, a.Slot.RetainedBytes)
	_, err = marks.Add(t.Context(), "a")
	require.ErrorContains(t, err, "already exists")
	for _, name := range []string{"", "A", "a-b", "ä", fmt.Sprintf("%064d", 1)} {
		_, err = marks.Add(t.Context(), name)
		require.ErrorContains(t, err, "bookmark name", "%q", name)
	}
	f.confirmed(f.publish("x", 100))
	b := f.bookmark("b")
	assert.Greater(t, b.Slot.ConfirmedFlush, a.Slot.ConfirmedFlush)
	list, err := marks.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 2)
	assert.Equal(t, []string{"a", "b"}, []string{list[0].Name, list[1].Name})

	_, err = marks.Move(t.Context(), "b", a.Slot.ConfirmedFlush)
	require.ErrorContains(t, err, "only move forward")
	_, err = marks.Move(t.Context(), "a", f.walEnd()+1<<30)
	require.ErrorContains(t, err, "has confirmed")
	moved, err := marks.Move(t.Context(), "a", b.Slot.ConfirmedFlush)
	require.NoError(t, err)
	assert.Equal(t, b.Slot.ConfirmedFlush, moved.Slot.ConfirmedFlush)
	f.confirmed(f.publish("y", 1))
	moved, err = marks.Move(t.Context(), "a", 0)
	require.NoError(t, err)
	assert.Greater(t, moved.Slot.ConfirmedFlush, b.Slot.ConfirmedFlush)

	require.NoError(t, marks.Drop(t.Context(), "a"))
	require.ErrorIs(t, marks.Drop(t.Context(), "a"), ErrNoBookmark)
	_, err = marks.Move(t.Context(), "a", 0)
	require.ErrorIs(t, err, ErrNoBookmark)
}

func TestOneReplayAtATime(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	g, err := openGuard(t.Context(), f.PostgresURL, f.Slot, "")
	require.NoError(t, err)
	defer g.Close()
	require.NoError(t, g.lock(t.Context()))
	_, err = FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.ErrorIs(t, err, ErrBusy)
	_, err = FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.ErrorIs(t, err, ErrBusy)
}
