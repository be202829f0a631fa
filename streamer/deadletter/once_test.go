package deadletter

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

func TestOneRetryAtATime(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := f.retrier()
	_, err := NewRetrier(t.Context(), f.PostgresURL, f.ClickHouse, f.tables)
	require.ErrorIs(t, err, ErrBusy)
	first.Close()
	f.retrier().Close()
}

// A view shows what a replica that is behind shows: its rows to a sequential query alone.
func TestARetryReadsWithSequentialConsistency(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(1, "a"))
	f.putDeadLetters(time.Now(), reject(at(900, 1), event(1, "a")))
	f.exec("CREATE VIEW behind AS SELECT * FROM event_log WHERE toBool(getSetting('select_sequential_consistency'))")
	f.tables.EventLog = "behind"
	assert.Equal(t, AlreadyWritten, f.retry(Filter{})[id(1)].Result)
}

func TestOperatorsInARaceWriteEachDeadLetterOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 50
	f.write(at(1000, 1), event(n, "later"))
	for i := range n {
		f.putDeadLetters(time.Now(), reject(at(900, uint32(i+1)), event(i, "a")))
	}
	var written atomic.Int64
	var operators sync.WaitGroup
	for range 4 {
		operators.Go(func() {
			for tries := 0; tries < 2; {
				r, err := NewRetrier(t.Context(), f.PostgresURL, f.ClickHouse, f.tables)
				if errors.Is(err, ErrBusy) { // as an operator would, only sooner
					<-time.After(20 * time.Millisecond)
					continue
				}
				if !assert.NoError(t, err) {
					return
				}
				assert.NoError(t, r.Retry(t.Context(), Filter{}, func(o Outcome) {
					assert.Equal(t, Written, o.Result)
					written.Add(1)
				}))
				r.Close()
				tries++
			}
		})
	}
	operators.Wait()
	assert.Equal(t, int64(n), written.Load())
	counts := f.rows()
	require.Len(t, counts, n+1)
	for _, count := range counts {
		assert.Equal(t, 1, count)
	}
}

// The insert of a retry that lost its lock, and still hangs in ClickHouse, is
// ended by the next one before it looks what is there.
func TestAnInsertLeftRunningIsEndedFirst(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(9, "later"))
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "a")))

	rows := new(decode.Rows)
	e := event(1, "a")
	rows.Append(at(500, 1), commitTime, &e)
	registered, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		done <- f.sink.Insert(t.Context(), rows, 0, 1, sink.InsertRequest{
			QueryID: queryPrefix(f.source) + "left-1", Token: "left", IngestedAt: time.Now(),
			Verify: func(context.Context) error {
				close(registered)
				<-goOn
				return nil // it was sure of its lock before it lost it
			},
		})
	}()
	<-registered
	assert.Equal(t, Written, f.retry(Filter{})[id(1)].Result)
	close(goOn)
	require.Error(t, <-done, "it was ended")
	assert.Equal(t, map[uuid.UUID]int{id(1): 1, id(9): 1}, f.rows())
}

// Without its lock a retry inserts nothing.
func TestARetryThatLostItsLockInsertsNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.useSource(sink.Source{SystemID: "123", Slot: "elsewhere"}) // its slot is not asked for: the proof itself must fail
	f.write(at(900, 1), event(9, "later"))
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "a")))
	r := f.retrier()
	_, err := f.Pool.Exec(t.Context(), "SELECT pg_terminate_backend($1::int, 5000)", r.guard.Conn.PgConn().PID())
	require.NoError(t, err)
	err = r.Retry(t.Context(), Filter{}, func(Outcome) { t.Error("nothing has happened") })
	require.ErrorIs(t, err, replication.ErrSession)
	assert.Equal(t, map[uuid.UUID]int{id(9): 1}, f.rows())
	assert.Len(t, f.list(Filter{}), 1)
}

// A streamer that starts ends the inserts of a retry with those of its predecessor.
func TestAStreamerThatStartsEndsTheInsertsOfARetry(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	assert.True(t, strings.HasPrefix(queryPrefix(f.source), f.source.QueryPrefix()))
	f.write(at(900, 1), event(9, "later"))
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "a")))
	ctx := clickhouse.Context(t.Context(), clickhouse.WithQueryID(queryPrefix(f.source)+"x-1"))
	batch, err := f.ClickHouse.PrepareBatch(ctx, "INSERT INTO event_log (event_type)")
	require.NoError(t, err)
	require.NoError(t, batch.Append("lost"))
	require.NoError(t, f.sink.Fence(t.Context(), f.source.QueryPrefix(), func(uint64) {}))
	require.Error(t, batch.Send())
	assert.Len(t, f.rows(), 1)
}

// A view that fails may leave the rows in event_log behind its error.
func TestAFailingViewDoublesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(9, "later"))
	f.exec("CREATE TABLE picky (n UInt8) ENGINE = MergeTree ORDER BY n")
	f.exec("CREATE MATERIALIZED VIEW feed TO picky AS SELECT throwIf(event_type = 'bad', 'picky') AS n FROM event_log")
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "good")), reject(at(500, 2), event(2, "bad")), reject(at(500, 3), event(3, "good")))
	outcomes := f.retry(Filter{})
	counts := f.rows()
	for _, n := range []int{1, 2, 3} {
		switch outcomes[id(n)].Result {
		case Written:
			assert.Equal(t, 1, counts[id(n)])
		case Refused:
			assert.Zero(t, counts[id(n)])
		default:
			t.Errorf("event %d: %+v", n, outcomes[id(n)])
		}
	}
	assert.Equal(t, Written, outcomes[id(1)].Result)
	assert.Equal(t, Written, outcomes[id(3)].Result)

	f.exec("DROP VIEW feed")
	f.retry(Filter{})
	assert.Equal(t, map[uuid.UUID]int{id(1): 1, id(2): 1, id(3): 1, id(9): 1}, f.rows())
}

// The error of a view that is taken for a limit of the insert halves nothing that is written.
func TestAViewThatExceedsALimitDoublesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(9, "later"))
	f.exec("CREATE TABLE target (n UInt64) ENGINE = MergeTree ORDER BY n")
	f.exec("CREATE MATERIALIZED VIEW limited TO target AS SELECT 1 AS n FROM event_log " +
		"WHERE commit_seq IN (SELECT number FROM numbers(100) SETTINGS max_rows_to_read = 1)")
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "a")), reject(at(500, 2), event(2, "b")), reject(at(500, 3), event(3, "c")))
	outcomes := f.retry(Filter{})
	for _, n := range []int{1, 2, 3} {
		assert.Equal(t, Written, outcomes[id(n)].Result)
	}
	assert.Equal(t, map[uuid.UUID]int{id(1): 1, id(2): 1, id(3): 1, id(9): 1}, f.rows())
	var n uint64
	require.NoError(t, f.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM target").Scan(&n))
	assert.Zero(t, n, "the view does not fail")
}

// An error that is not about the rows ends the retry; the next one finishes it.
func TestARetryThatFailsCanBeRepeated(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(at(900, 1), event(9, "later"))
	f.putDeadLetters(time.Now(), reject(at(500, 1), event(1, "a")))
	r := f.retrier()
	f.exec("RENAME TABLE event_log TO away")
	err := r.Retry(t.Context(), Filter{}, func(Outcome) { t.Error("nothing has happened") })
	require.ErrorContains(t, err, "event_log")
	f.exec("RENAME TABLE away TO event_log")
	var results []Result
	require.NoError(t, r.Retry(t.Context(), Filter{}, func(o Outcome) { results = append(results, o.Result) }))
	assert.Equal(t, []Result{Written}, results)
}
