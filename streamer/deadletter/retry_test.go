package deadletter

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// alive is a Verify that holds.
func (f *fixture) alive(context.Context) error { return nil }

func TestADeadLetterIsWrittenAtItsPositionOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 3), event(9, "later"))
	f.putDeadLetters(time.Now(), reject(at(500, 2), event(1, "user_created")))
	before := time.Now().Truncate(time.Millisecond)

	outcomes := f.retry(Filter{})
	require.Len(t, outcomes, 1)
	assert.Equal(t, Written, outcomes[id(1)].Result)
	assert.Empty(t, outcomes[id(1)].Cause)

	var got struct {
		ID            uuid.UUID `ch:"event_id"`
		Type          string    `ch:"event_type"`
		At            time.Time `ch:"event_date_time"`
		Environment   string    `ch:"environment"`
		Context       string    `ch:"event_context"`
		Version       uint64    `ch:"metadata_version"`
		TraceID       string    `ch:"trace_id"`
		PublishedBy   string    `ch:"published_by"`
		Source        string    `ch:"source"`
		LSN           uint64    `ch:"commit_lsn"`
		Seq, Timeline uint32
		Commit        time.Time `ch:"commit_time"`
		Ingested      time.Time `ch:"ingested_at"`
	}
	require.NoError(t, f.ClickHouse.QueryRow(t.Context(), `SELECT event_id, event_type, event_date_time, environment, event_context,
		metadata_version, trace_id, published_by, source, commit_lsn, commit_seq AS Seq, timeline AS Timeline, commit_time, ingested_at
		FROM event_log WHERE event_type = 'user_created'`).ScanStruct(&got))
	assert.Equal(t, id(1), got.ID)
	assert.Equal(t, int64(1_700_000_000_000_001), got.At.UnixMicro())
	assert.Equal(t, "Test", got.Environment)
	assert.Equal(t, `{"n": 1}`, got.Context)
	assert.Equal(t, uint64(1), got.Version)
	assert.Equal(t, strings.ReplaceAll(id(1).String(), "-", ""), got.TraceID)
	assert.Equal(t, "shop", got.PublishedBy)
	assert.Equal(t, f.source.String(), got.Source)
	assert.Equal(t, uint64(500), got.LSN)
	assert.Equal(t, uint32(2), got.Seq)
	assert.Equal(t, uint32(timeline), got.Timeline)
	assert.Equal(t, int64(commitTime), got.Commit.UnixMicro())
	assert.WithinRange(t, got.Ingested, before, time.Now())

	assert.Empty(t, f.list(Filter{}))
	all := f.list(Filter{Retried: true})
	require.Len(t, all, 1)
	assert.WithinRange(t, all[0].RetriedAt, before, time.Now())
	assert.Equal(t, "refused before", all[0].Reason, "the record stays what it was")

	assert.Empty(t, f.retry(Filter{}), "nothing is left to do")
	assert.Equal(t, map[uuid.UUID]int{id(9): 1, id(1): 1}, f.rows())
	position, _, err := f.sink.Position(t.Context())
	require.NoError(t, err)
	assert.Equal(t, at(900, 3), position, "where the streamer goes on is as before")
}

// A retry that died before it could mark what it had written.
func TestALetterThatIsThereIsOnlyMarked(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "a")), reject(at(500, 2), event(2, "a")))
	f.write(at(500, 1), event(1, "a"))
	f.write(at(900, 1), event(9, "later"))
	outcomes := f.retry(Filter{})
	assert.Equal(t, AlreadyWritten, outcomes[id(1)].Result)
	assert.Equal(t, Written, outcomes[id(2)].Result)
	assert.Equal(t, map[uuid.UUID]int{id(1): 1, id(2): 1, id(9): 1}, f.rows())
	assert.Empty(t, f.list(Filter{}))
}

func TestARowThatStillCannotBeDecodedStays(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(9, "later"))
	infinite := reject(at(500, 1), event(1, "a"))
	tuple, err := decode.ParseTuple(infinite.Raw)
	require.NoError(t, err)
	tuple.Columns[2].Value = []byte("\x7f\xff\xff\xff\xff\xff\xff\xff")
	infinite.Raw = tuple.Encode()
	damaged := reject(at(500, 2), event(2, "a"))
	damaged.Raw = "{"
	f.putDeadLetters(time.Now(), infinite, damaged, reject(at(500, 3), event(3, "a")))

	outcomes := f.retry(Filter{})
	assert.Equal(t, Refused, outcomes[id(1)].Result)
	assert.Equal(t, "column event_date_time is infinite", outcomes[id(1)].Cause)
	assert.Equal(t, Refused, outcomes[id(2)].Result)
	assert.Contains(t, outcomes[id(2)].Cause, "parse raw row")
	assert.Equal(t, Written, outcomes[id(3)].Result)
	assert.Len(t, f.list(Filter{}), 2)
}

// What ClickHouse refuses again is found among the rest, and is written when
// the cause is fixed.
func TestRowsThatClickHouseRefusesAreIsolated(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(99, "later"))
	f.exec("ALTER TABLE event_log ADD CONSTRAINT no_bad CHECK event_type != 'bad'")
	kinds := []string{"good", "bad", "good", "good", "bad", "bad", "good", "good", "good", "good", "good"}
	rejects := make([]decode.Reject, len(kinds))
	for i, kind := range kinds {
		rejects[i] = reject(at(500, uint32(i+1)), event(i, kind))
	}
	f.putDeadLetters(time.Now(), rejects...)
	outcomes := f.retry(Filter{})
	for i, kind := range kinds {
		o := outcomes[id(i)]
		if kind == "bad" {
			assert.Equal(t, Refused, o.Result)
			assert.Contains(t, o.Cause, "no_bad")
			assert.NotContains(t, o.Cause, `"n"`, "no payload in a message")
		} else {
			assert.Equal(t, Written, o.Result)
		}
	}
	assert.Len(t, f.rows(), 9)
	assert.Len(t, f.list(Filter{}), 3)

	f.exec("ALTER TABLE event_log DROP CONSTRAINT no_bad")
	for _, o := range f.retry(Filter{Types: []string{"bad"}}) {
		assert.Equal(t, Written, o.Result)
	}
	counts := f.rows()
	assert.Len(t, counts, 12)
	for _, n := range counts {
		assert.Equal(t, 1, n)
	}
}

// One that meets a code that no list has does not keep the others from being written.
func TestARowWithAnUnknownCodeIsIsolated(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(99, "later"))
	f.exec("ALTER TABLE event_log ADD COLUMN n UInt64 MATERIALIZED toUInt64(if(event_type = 'bad', '', '7'))")
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "bad")), reject(at(500, 2), event(2, "good")))
	outcomes := f.retry(Filter{})
	assert.Equal(t, Refused, outcomes[id(1)].Result)
	assert.Contains(t, outcomes[id(1)].Cause, "code: 32")
	assert.Equal(t, Written, outcomes[id(2)].Result)
}

// The streamer would take a row that written too early for the end of what was written.
func TestALetterAheadOfTheStreamerWaits(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ahead := f.confirmed + 1_000_000
	f.write(at(100, 1), event(9, "earlier"))
	f.putDeadLetters(time.Now(),
		reject(at(f.confirmed-1, 1), event(1, "confirmed")), reject(at(f.confirmed, 1), event(2, "at the limit")), reject(at(ahead, 5), event(3, "ahead")))

	outcomes := f.retry(Filter{})
	assert.Equal(t, Written, outcomes[id(1)].Result)
	for _, n := range []int{2, 3} {
		assert.Equal(t, TooEarly, outcomes[id(n)].Result)
		assert.Contains(t, outcomes[id(n)].Cause, "the streamer has confirmed "+f.confirmed.String()+" only")
	}
	position, _, err := f.sink.Position(t.Context())
	require.NoError(t, err)
	assert.Equal(t, at(f.confirmed-1, 1), position)

	f.write(at(ahead, 4), event(4, "the row before"))
	assert.Equal(t, TooEarly, f.retry(Filter{IDs: []uuid.UUID{id(3)}})[id(3)].Result)
	f.write(at(ahead, 6), event(5, "the row behind"))
	assert.Equal(t, Written, f.retry(Filter{IDs: []uuid.UUID{id(3)}})[id(3)].Result)
}

func TestWhatTheSlotConfirmsMayBeWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.putDeadLetters(time.Now(), reject(at(f.confirmed, 1), event(1, "a")))
	require.Equal(t, TooEarly, f.retry(Filter{})[id(1)].Result)
	_, err := f.Pool.Exec(t.Context(), "INSERT INTO users (email, first_name, last_name) VALUES ('a@example.com', 'a', 'b')")
	require.NoError(t, err)
	_, err = f.Pool.Exec(t.Context(), "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", f.Slot)
	require.NoError(t, err)
	assert.Equal(t, Written, f.retry(Filter{})[id(1)].Result)
}

func TestDeadLettersOfAnotherServerAreBoundByWhatIsWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.useSource(sink.Source{SystemID: "123", Slot: f.Slot})
	f.write(at(1, 2), event(9, "written"))
	f.putDeadLetters(time.Now(), reject(at(1, 1), event(1, "before")), reject(at(1, 3), event(2, "behind")))
	outcomes := f.retry(Filter{})
	assert.Equal(t, Written, outcomes[id(1)].Result)
	assert.Equal(t, TooEarly, outcomes[id(2)].Result)
	assert.Contains(t, outcomes[id(2)].Cause, "slot "+f.Slot+" of system 123 is not on the server that DATABASE_URL names")
}

// A replay from the table gives its rows a source of their own.
func TestDeadLettersOfAReplayMayAlwaysBeWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.useSource(sink.Source{SystemID: f.source.SystemID, Slot: f.Slot + "/table"})
	f.putDeadLetters(time.Now(), reject(at(f.confirmed+1_000_000, 5), event(1, "a")))
	assert.Equal(t, Written, f.retry(Filter{})[id(1)].Result)
}

// The streamer's own role has what it needs.
func TestTheStreamersRoleMayRetry(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	role := f.Slot + "_operator"
	_, err := f.Pool.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN PASSWORD 'secret' REPLICATION IN ROLE diehard_streamer")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := f.Pool.Exec(context.Background(), "DROP ROLE "+role)
		require.NoError(t, err)
	})
	f.putDeadLetters(time.Now(), reject(at(f.confirmed-1, 1), event(1, "a")))
	url := testenv.AsUser(t, f.PostgresURL, role, "secret")
	r, err := NewRetrier(t.Context(), url, f.ClickHouse, f.tables)
	require.NoError(t, err)
	defer r.Close()
	var results []Result
	require.NoError(t, r.Retry(t.Context(), Filter{}, func(o Outcome) { results = append(results, o.Result) }))
	assert.Equal(t, []Result{Written}, results)
}

func TestSourcesAndTimelinesKeepApart(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i, s := range []sink.Source{{SystemID: "1", Slot: "a"}, {SystemID: "1", Slot: "b"}, {SystemID: "2", Slot: "a"}} {
		f.useSource(s)
		f.write(at(900, 1), event(90+i, "later"))
		for line := range uint32(2) {
			f.sink = sink.New(f.ClickHouse, f.tables, s, sink.OnTimeline(line+1))
			f.putDeadLetters(time.Now(), reject(at(500, line+1), event(10*i+int(line), "a")))
		}
	}
	assert.Len(t, f.retry(Filter{}), 6)
	rows, err := f.ClickHouse.Query(t.Context(), "SELECT source, timeline, event_id FROM event_log WHERE event_type = 'a' ORDER BY source, timeline")
	require.NoError(t, err)
	defer rows.Close()
	var got []string
	for rows.Next() {
		var source string
		var line uint32
		var event uuid.UUID
		require.NoError(t, rows.Scan(&source, &line, &event))
		got = append(got, fmt.Sprintf("%s %d %s", source, line, event))
	}
	require.NoError(t, rows.Err())
	assert.Equal(t, []string{
		"1/a 1 " + id(0).String(), "1/a 2 " + id(1).String(), "1/b 1 " + id(10).String(),
		"1/b 2 " + id(11).String(), "2/a 1 " + id(20).String(), "2/a 2 " + id(21).String(),
	}, got)
}

func TestASourceThatIsNotOursIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec("INSERT INTO event_dead_letter (source, commit_lsn, commit_seq, raw) VALUES ('strange', 1, 2, '{}')")
	r := f.retrier()
	err := r.Retry(t.Context(), Filter{}, func(Outcome) { t.Error("nothing to report") })
	require.ErrorContains(t, err, `the source "strange", which names no slot`)
}

func TestTablesThatAreNotOursAreRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.putDeadLetters(time.Now(), reject(at(500, 2), event(1, "user_created")))
	f.exec("ALTER TABLE event_log MODIFY COLUMN timeline UInt64")
	r := f.retrier()
	err := r.Retry(t.Context(), Filter{}, func(Outcome) { t.Error("nothing to report") })
	require.ErrorContains(t, err, `column timeline is "UInt64" and must be UInt32`)
	r.Close()
	f.exec("ALTER TABLE event_log MODIFY COLUMN timeline UInt32")
	assert.Equal(t, Written, f.retry(Filter{})[id(1)].Result)
}

// More than a page of them, and pages that are full by their size.
func TestAnyNumberOfDeadLettersIsRetriedInPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 2*pageRows + 7
	f.write(at(1000, 1), event(n, "later"))
	rejects := make([]decode.Reject, n)
	for i := range rejects {
		rejects[i] = reject(at(900, uint32(i+1)), event(i, "a"))
	}
	f.putDeadLetters(time.Now(), rejects...)
	large := make([]decode.Reject, 20)
	for i := range large {
		e := event(n+1+i, "large")
		e.Context = []byte(`"` + strings.Repeat("x", 1<<20-2) + `"`)
		large[i] = reject(at(901, uint32(i+1)), e)
	}
	f.putDeadLetters(time.Now(), large...)
	outcomes := f.retry(Filter{})
	require.Len(t, outcomes, n+20)
	for _, o := range outcomes {
		require.Equal(t, Written, o.Result)
	}
	counts := f.rows()
	require.Len(t, counts, n+21)
	for _, count := range counts {
		require.Equal(t, 1, count)
	}

	page, err := f.retrier().records.page(t.Context(), Filter{Retried: true, Types: []string{"large"}}, Record{})
	require.NoError(t, err)
	assert.Len(t, page, 11, "1.33 MiB each in base64, 16 MiB at most")
}
