package replay

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/streamer/replication"
)

// A streamer that starts ends the inserts of a replay, which tries again.
func TestReplayGoesOnWhileTheStreamerStartsAgain(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.confirmed(f.publish("a", 1200))
	f.remove("commit_seq % 2 = 0")
	stop := f.load()
	for _, replay := range []func(Config) (Report, error){
		func(c Config) (Report, error) { return FromWAL(t.Context(), c, Range{Bookmark: "b"}, Mode{}) },
		func(c Config) (Report, error) { return FromTable(t.Context(), c, Span{}, Mode{}) },
	} {
		c, restarts := f.config(), 0
		c.Limits.Rows = 200
		c.Progress = func(uint64, uint64) {
			if restarts++; restarts <= 3 {
				f.exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", f.Slot)
			}
		}
		_, err := replay(c)
		require.NoError(t, err)
		assert.Positive(t, restarts)
		f.remove("commit_seq % 3 = 0 AND event_type = 'a'")
	}
	_, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	stop()
	f.complete()
}

// Without its session a replay inserts nothing more: another one may have the lock.
func TestAReplayThatLosesItsSessionEnds(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.confirmed(f.publish("a", 1000))
	f.remove("true")
	c := f.config()
	c.Progress = func(done, _ uint64) {
		if done > 300 {
			f.exec(`SELECT pg_terminate_backend(l.pid) FROM pg_locks l WHERE locktype = 'advisory' AND classid = $1
				AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`, uint32(lockClass))
		}
	}
	report, err := FromTable(t.Context(), c, Span{}, Mode{})
	require.ErrorIs(t, err, replication.ErrSession)
	assert.Equal(t, int64(400), report.Filled)
	assert.Equal(t, 400, f.count("event_log", "true"))
	_, err = FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	f.complete()
}

// ClickHouse refusing inserts for a while only delays.
func TestAReplayWaitsForClickHouse(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.confirmed(f.publish("a", 500))
	f.remove("true")
	f.command("ALTER TABLE event_log MODIFY SETTING table_readonly = 1")
	c, warnings := f.config(), &counter{}
	c.Log = slog.New(warnings)
	done := make(chan Report, 1)
	go func() {
		report, err := FromWAL(t.Context(), c, Range{Bookmark: "b"}, Mode{})
		assert.NoError(t, err)
		done <- report
	}()
	await.True(f.t, func() bool { return warnings.n.Load() >= 2 }, "the replay tries again")
	assert.Empty(t, done)
	f.command("ALTER TABLE event_log MODIFY SETTING table_readonly = 0")
	report := <-done
	assert.Equal(t, int64(500), report.Filled)
	f.complete()
}

// counter counts what is logged.
type counter struct{ n atomic.Int64 }

func (c *counter) Enabled(context.Context, slog.Level) bool { return true }
func (c *counter) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *counter) WithGroup(string) slog.Handler            { return c }
func (c *counter) Handle(context.Context, slog.Record) error {
	c.n.Add(1)
	return nil
}

// What is in event_log is known by its position, whatever the clocks have been.
func TestAClockThatWasWrongDuplicatesNothing(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.confirmed(f.publish("a", 5))
	f.command(`INSERT INTO event_log SETTINGS async_insert = 0 SELECT * REPLACE (ingested_at - INTERVAL 60 DAY AS ingested_at, commit_seq + 1000 AS commit_seq) FROM event_log`)
	f.remove("commit_seq < 1000")
	f.command("ALTER TABLE event_log UPDATE commit_seq = commit_seq - 1000 WHERE true SETTINGS mutations_sync = 2")
	report, err := FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, []int64{5, 5, 0}, []int64{report.Read, report.Present, report.Missing})
	f.complete()
}
