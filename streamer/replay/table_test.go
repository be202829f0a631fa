package replay

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/streamer/replication"
)

func TestDeletedRowsComeBackFromTheTable(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.publish("a", 250)
	f.confirmed(f.publish("b", 350))
	require.Equal(t, 149, f.remove("commit_seq % 4 = 0"))

	stop := f.load()
	report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(149), report.Filled)
	assert.Equal(t, report.Read, report.Present+report.Missing)
	assert.GreaterOrEqual(t, report.Read, int64(600))
	stop()
	f.complete()
	assert.Equal(t, 149, f.count("event_log", "source LIKE '%/table'"), "with a source of their own")

	report, err = FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Zero(t, report.Missing)
	f.complete()
}

// They may be dropped, as the stream allows it.
func TestAnOutboxWithoutItsOptionalColumnsIsRead(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.exec("DROP VIEW diehard_events")
	f.exec("ALTER TABLE outbox DROP COLUMN trace_context, DROP COLUMN published_by")
	f.exec("INSERT INTO outbox (event_type, event_context) SELECT 'bare', to_json(n) FROM generate_series(1, 20) AS n")
	f.confirmed(f.walEnd())
	f.remove("commit_seq <= 5")
	report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(5), report.Filled)
	verdict, err := VerifyTable(t.Context(), f.config(), Span{}, 10)
	require.NoError(t, err)
	assert.False(t, verdict.Wrong(), "%+v", verdict)
}

// The fix for a slot that was dropped, or lost.
func TestADroppedSlotIsFixedByTheTable(t *testing.T) {
	f := newFixture(t)
	stop := f.stream()
	f.confirmed(f.publish("before", 120))
	stop()
	f.exec("SELECT pg_drop_replication_slot($1)", f.Slot)
	f.publish("lost", 230)
	_, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.ErrorContains(t, err, "streamer slot create")

	c, err := replication.OpenControl(t.Context(), f.PostgresURL, "test", f.origin)
	require.NoError(t, err)
	_, err = c.ReplaceSlot(t.Context())
	c.Close(t.Context())
	require.NoError(t, err)
	f.publish("after", 40) // is the new slot's to deliver
	done := make(chan Report, 1)
	go func() {
		report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
		assert.NoError(t, err)
		done <- report
	}()
	await.True(f.t, func() bool {
		var waits bool
		err := f.Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'diehard-streamer-replay' AND state = 'idle in transaction')`).Scan(&waits)
		require.NoError(t, err)
		return waits
	}, "the replay waits for the streamer, which does not run")
	assert.Empty(t, done)
	f.stream()
	report := <-done
	assert.Equal(t, int64(230), report.Filled)
	assert.Equal(t, int64(160), report.Present)
	f.complete()

	var everything bool
	err = f.Pool.QueryRow(t.Context(), `SELECT delivered_since = '-infinity' FROM diehard_slot WHERE slot_name = $1`, f.Slot).Scan(&everything)
	require.NoError(t, err)
	assert.True(t, everything, "retention may drop the partitions of before")
}

// An id may be used more than once, with the same content or another: every row comes back, once.
func TestRowsOfReusedIDsComeBackFromTheTable(t *testing.T) {
	f := newFixture(t)
	f.stream()
	id, twin := uuid.New(), uuid.New()
	reuse := func(id uuid.UUID, n int) {
		f.exec("INSERT INTO outbox (id, event_type, event_context) VALUES ($1, 'reused', json_build_object('n', $2::int))", id, n)
	}
	for _, n := range []int{1, 2} {
		reuse(id, n)
		reuse(twin, 7)
	}
	f.publish("between", 250) // more than a chunk
	reuse(twin, 7)
	reuse(id, 2)
	reuse(id, 3)
	f.confirmed(f.publish("z", 1))
	stop := f.load() // on an idle server every wait for the streamer takes seconds
	for _, removed := range []struct {
		rows string
		n    int64
	}{
		{`event_type = 'reused' AND event_context IN ('{"n" : 2}', '{"n" : 7}')`, 5}, // all of an id, and one content of another
		{`event_type = 'reused'`, 7},
	} {
		f.remove(removed.rows)
		for _, m := range []Mode{{DryRun: true}, {}} {
			report, err := FromTable(t.Context(), f.config(), Span{}, m)
			require.NoError(t, err)
			assert.Equal(t, removed.n, report.Missing, removed.rows)
			assert.Equal(t, report.Read, report.Present+report.Missing)
		}
		assert.Equal(t, 7, f.count("event_log", "event_type = 'reused'"))
	}
	// A row that was changed in event_log is not missing.
	f.command(`ALTER TABLE event_log UPDATE event_context = '{"n":3}' WHERE event_type = 'reused' AND event_context = '{"n" : 3}' SETTINGS mutations_sync = 2`)
	report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Zero(t, report.Missing)
	stop()
	f.complete()
	assert.Equal(t, 3, f.count("event_log", "event_id = '"+twin.String()+"' AND event_context = '{\"n\" : 7}'"))
}

func TestASpanOfTheTable(t *testing.T) {
	f := newFixture(t)
	f.stream()
	for _, day := range []string{"-2 days", "-1 days", "0"} {
		f.exec(`INSERT INTO outbox (event_type, event_context, published_at)
			SELECT 'day', '{}', date_trunc('day', now(), 'UTC') + $1::interval + '1 hour' FROM generate_series(1, 10)`, day)
	}
	f.confirmed(f.walEnd())
	f.remove("true")
	today := time.Now().UTC().Truncate(24 * time.Hour)
	yesterday := Span{Since: today.AddDate(0, 0, -1), Until: today}
	report, err := FromTable(t.Context(), f.config(), yesterday, Mode{DryRun: true})
	require.NoError(t, err)
	assert.Equal(t, int64(10), report.Missing)
	report, err = FromTable(t.Context(), f.config(), yesterday, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(10), report.Filled)
	report, err = FromTable(t.Context(), f.config(), Span{Since: today.AddDate(0, 0, -1)}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(20), report.Read)
	assert.Equal(t, int64(10), report.Filled)
	report, err = FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(30), report.Read)
	assert.Equal(t, int64(10), report.Filled)
	f.complete()
	_, err = FromTable(t.Context(), f.config(), Span{Since: today, Until: yesterday.Since}, Mode{})
	require.ErrorIs(t, err, errEmptySpan)
}

// What was filled from the table is not filled again from the WAL, and the other way round.
func TestTheTwoWaysKnowEachOther(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.bookmark("b")
	f.confirmed(f.publish("a", 100))
	f.remove("commit_seq <= 30")
	report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(30), report.Filled)
	f.remove("source NOT LIKE '%/table' AND commit_seq <= 50")
	report, err = FromWAL(t.Context(), f.config(), Range{Bookmark: "b"}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, Report{From: report.From, To: report.To, Read: 100, Present: 80, Missing: 20, Filled: 20, Took: report.Took}, report)
	f.complete()
	verdict, err := VerifyWAL(t.Context(), f.config(), Range{Bookmark: "b"}, 10)
	require.NoError(t, err)
	assert.Equal(t, Verdict{From: verdict.From, To: verdict.To, Read: 100, Equal: 100}, verdict)
}

func TestTheTablesRefusedRowsBecomeDeadLettersOnce(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.confirmed(f.publish("good", 90))
	f.exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", f.Slot)
	f.AllowOutOfRange(t)
	f.exec(`INSERT INTO outbox (event_type, event_context, event_date_time) VALUES ('endless', '{}', 'infinity')`)
	f.confirmed(f.publish("bad", 2))
	f.command("ALTER TABLE event_log DELETE WHERE true SETTINGS mutations_sync = 2")
	require.Equal(t, 1, f.count("event_dead_letter", "true"))
	f.command("TRUNCATE TABLE event_dead_letter")
	f.command("ALTER TABLE event_log ADD CONSTRAINT c CHECK event_type != 'bad'")

	report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, Report{Read: 93, Missing: 93, Filled: 90, Refused: 3, Took: report.Took}, report)
	assert.Equal(t, 3, f.count("event_dead_letter FINAL", "true"))
	report, err = FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, Report{Read: 93, Present: 90, DeadLetters: 3, Took: report.Took}, report)
}

// A code that no list has is tried some times, and then isolated like any other.
func TestTheTablesRowsWithAnUnknownCodeBecomeDeadLetters(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.exec("INSERT INTO outbox (event_type, event_context) VALUES ('bad', '{}')")
	f.publish("good", 40)
	f.confirmed(f.publish("bad", 1))
	f.remove("true")
	f.command("ALTER TABLE event_log ADD COLUMN n UInt64 MATERIALIZED toUInt64(if(event_type = 'bad', '', '7'))")
	report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, Report{Read: 42, Missing: 42, Filled: 40, Refused: 2, Took: report.Took}, report)
	assert.Equal(t, 2, f.count("event_dead_letter FINAL", "event_type = 'bad' AND error_code = 32"))
	assert.Equal(t, 40, f.count("event_log", "true"))
}

// Whatever a view fails with, and when, the rows are written once.
func TestAReplayBesideAViewThatFails(t *testing.T) {
	for name, view := range map[string]string{
		"by a limit":  "SELECT [1] AS n FROM event_log WHERE commit_seq IN (SELECT number FROM numbers(100) SETTINGS max_rows_to_read = 1)",
		"by its type": "SELECT [1] AS n FROM event_log",
		"by a value":  "SELECT [throwIf(event_type = 'a')] AS n FROM event_log",
		"its target":  "SELECT [1] AS n FROM event_log",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.stream()
			f.confirmed(f.publish("a", 250))
			f.remove("true")
			f.command("CREATE TABLE target (n Array(UInt8)) ENGINE = MergeTree ORDER BY n")
			f.command("CREATE MATERIALIZED VIEW watcher TO target AS " + view)
			switch name {
			case "by its type":
				f.command("DROP TABLE target SYNC")
				f.command("CREATE TABLE target (n Array(Array(UInt8))) ENGINE = MergeTree ORDER BY n")
			case "its target":
				f.command("DROP TABLE target SYNC")
			}
			report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
			require.NoError(t, err)
			assert.Equal(t, int64(250), report.Filled+report.Present)
			assert.Zero(t, report.Refused)
			f.complete()
		})
	}
}

func TestATableReplayThatIsInterruptedCanBeRepeated(t *testing.T) {
	f := newFixture(t)
	f.stream()
	f.confirmed(f.publish("a", 1000))
	f.remove("true")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := f.config()
	c.Progress = func(done, _ uint64) {
		if done >= 300 {
			cancel()
		}
	}
	report, err := FromTable(ctx, c, Span{}, Mode{})
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, int64(300), report.Filled)
	report, err = FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(700), report.Filled)
	f.complete()
}

// Retention has taken the partition out when the slot is lost, and waits for the replay to drop it.
func TestADetachedPartitionIsReplayed(t *testing.T) {
	f := newFixture(t)
	f.exec(`CREATE TABLE diehard_outbox_p20200101 PARTITION OF outbox FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00')`)
	stop := f.stream()
	f.exec(`UPDATE diehard_slot SET delivered_since = '-infinity'`)
	f.exec(`INSERT INTO outbox (event_type, event_context, published_at) SELECT 'old', '{}', '2020-01-01 12:00:00+00' FROM generate_series(1, 150)`)
	f.confirmed(f.walEnd())
	state := func() (state string) {
		require.NoError(t, f.Pool.QueryRow(t.Context(), `SELECT state FROM diehard_retired`).Scan(&state))
		return state
	}
	retire := func(wanted string) {
		t.Helper()
		await.True(f.t, func() bool {
			f.exec(`SELECT outbox_retire_partitions('30 days')`)
			f.confirmed(f.walEnd())
			return state() == wanted
		}, "the partition is %s", wanted)
	}
	f.exec(`SELECT outbox_retire_partitions('30 days')`)
	f.confirmed(f.walEnd())
	retire("detached")
	f.exec(`UPDATE diehard_slot SET delivered_since = now()`) // as for a slot that is made anew
	require.Equal(t, 150, f.remove("true"))

	report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(150), report.Filled)
	verdict, err := VerifyTable(t.Context(), f.config(), Span{}, 10)
	require.NoError(t, err)
	assert.Equal(t, int64(150), verdict.Equal)
	report, err = FromTable(t.Context(), f.config(), Span{Since: time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC)}, Mode{DryRun: true})
	require.NoError(t, err)
	assert.Zero(t, report.Read, "it is not in the span")
	var may bool
	require.NoError(t, f.Pool.QueryRow(t.Context(), `SELECT has_table_privilege('diehard_streamer', 'diehard_outbox_p20200101', 'SELECT')`).Scan(&may))
	assert.True(t, may)
	retire("dropped")
	stop()
}

// Our tables are in schema public, wherever sessions look first.
func TestADatabaseWithASearchPathOfItsOwn(t *testing.T) {
	f := newFixture(t)
	f.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = app', current_database()); END $$`)
	f.stream()
	f.exec(`INSERT INTO public.outbox (event_type, event_context) SELECT 'a', '{}' FROM generate_series(1, 50)`)
	f.confirmed(f.walEnd())
	require.Equal(t, 20, f.remove("commit_seq <= 20"))
	report, err := FromTable(t.Context(), f.config(), Span{}, Mode{})
	require.NoError(t, err)
	assert.Equal(t, int64(20), report.Filled)
	verdict, err := VerifyTable(t.Context(), f.config(), Span{}, 10)
	require.NoError(t, err)
	assert.Equal(t, int64(50), verdict.Equal)
}
