package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestTheConfirmedPositionNeverGoesBack(t *testing.T) {
	t.Parallel()
	c := &confirmed{kick: make(chan struct{}, 1)}
	for _, step := range []struct{ raise, want uint64 }{{0, 0}, {100, 100}, {50, 100}, {0, 100}, {101, 101}} {
		c.raise(step.raise)
		assert.Equal(t, step.want, c.lsn.Load())
	}
	assert.Len(t, c.kick, 1, "one signal is enough for all")
}

// sessions counts the sessions that ended.
type sessions struct {
	NoopObserver
	ended chan error
}

func (s sessions) SessionEnded(err error) { s.ended <- err }

// A server that is not there is tried again for ever, with pauses that grow.
func TestAnAbsentServerIsTriedAgain(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	listener.Close() // nothing listens there now
	ended := sessions{ended: make(chan error, 100)}
	p := New(Config{PostgresURL: "postgres://user:hunter2@" + address + "/db?sslmode=disable", SenderTimeout: time.Second},
		nil, slog.New(slog.DiscardHandler), ended)
	assert.Equal(t, Connecting, p.Progress().State())
	ctx, stop := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- p.Run(ctx) }()
	for range 2 {
		err := <-ended.ended
		require.ErrorContains(t, err, "connect to PostgreSQL")
		assert.NotContains(t, err.Error(), "hunter2")
	}
	last, when := p.Progress().LastError()
	require.Error(t, last)
	assert.WithinDuration(t, time.Now(), when, time.Minute)
	stop()
	require.NoError(t, <-result, "a stop is no failure")
	assert.Equal(t, Stopped, p.Progress().State())
}

func TestAWrongAddressIsFatal(t *testing.T) {
	t.Parallel()
	p := New(Config{PostgresURL: "postgres://user:hunter2@host:port/db"}, nil, slog.New(slog.DiscardHandler), nil)
	err := p.Run(t.Context())
	require.ErrorContains(t, err, "DATABASE_URL")
	assert.Equal(t, failure.Fatal, failure.Of(err))
	assert.NotContains(t, err.Error(), "hunter2")
}

func TestAStopIsNoError(t *testing.T) {
	t.Parallel()
	require.NoError(t, shutdownError(nil))
	require.NoError(t, shutdownError(fmt.Errorf("receive: %w", context.Canceled)))
	require.ErrorContains(t, shutdownError(errDrain), "they come again at the next start")
}

func TestAnotherServerBehindTheAddressIsFatal(t *testing.T) {
	t.Parallel()
	p := New(Config{}, nil, slog.New(slog.DiscardHandler), nil)
	of := func(systemID string) func() (replication.IntentRecord, error) {
		return func() (replication.IntentRecord, error) { return replication.IntentRecord{SystemID: systemID}, nil }
	}
	require.NoError(t, p.sameServer("1", of("")))
	require.NoError(t, p.sameServer("1", of("")))
	for _, recorded := range []string{"", "2"} {
		err := p.sameServer("2", of(recorded))
		require.ErrorContains(t, err, "its system identifier is 2 and was 1")
		assert.Equal(t, failure.Fatal, failure.Of(err))
	}
	p.cfg.StartLSN, p.startChecked = 300, true
	require.NoError(t, p.sameServer("2", of("1")), "it was made of the first")
	assert.Zero(t, p.cfg.StartLSN, "a position of the first one's WAL")
	require.Error(t, p.sameServer("1", of("1")))
}

// Progress adds up while batches go from hand to hand.
func TestProgressKnowsWhatIsBuffered(t *testing.T) {
	t.Parallel()
	r := newReception(t, roomy)
	p := r.s.progress
	r.transaction(1000, 3)
	r.wait(time.Now())
	b := r.handed()
	require.NotNil(t, b)
	rows, bytes := p.Buffered()
	assert.Equal(t, int64(3), rows)
	assert.Equal(t, int64(b.Bytes()), bytes)
	r.data(beginOf(2000))
	r.data(rowOf())
	r.wait(time.Now())
	rows, _ = p.Buffered()
	assert.Equal(t, int64(4), rows, "the writer has three, one is open")
	assert.Equal(t, pglogrepl.LSN(1048), p.Decoded())
	assert.Equal(t, pglogrepl.LSN(2000), p.Received())

	p.done(measure(b))
	p.wrote(Flush{Rows: 3, Bytes: 300, Last: decode.Position{LSN: 1000, Seq: 3}})
	rows, _ = p.Buffered()
	assert.Equal(t, int64(1), rows)
	written, size, inserts := p.Written()
	assert.Equal(t, []int64{3, 300, 1}, []int64{written, size, inserts})
	assert.Equal(t, pglogrepl.LSN(1000), p.Flushed())
	assert.WithinDuration(t, time.Now(), p.LastFlush(), time.Minute)

	p.begin("next", 1048) // what was buffered comes again
	rows, bytes = p.Buffered()
	assert.Zero(t, rows+bytes)
	assert.Equal(t, "next", p.Session())
}

func TestStartLSNIsCheckedOnce(t *testing.T) {
	t.Parallel()
	written := func(s *session, after, through pglogrepl.LSN) replication.IntentRecord {
		return replication.IntentRecord{SystemID: s.source.SystemID, Timeline: s.history.Timeline, Intent: &replication.Intent{
			After: replication.Position{LSN: after}, Through: replication.Position{LSN: through},
		}}
	}
	check := func(start, confirmed, after, end pglogrepl.LSN) (pglogrepl.LSN, error) {
		p := New(Config{StartLSN: start}, nil, slog.New(slog.DiscardHandler), nil)
		s := newSession(p)
		s.slot.ConfirmedFlush = confirmed
		return s.startAt(written(s, after, after), end)
	}
	at := func(want, start, confirmed, after, end pglogrepl.LSN) {
		t.Helper()
		got, err := check(start, confirmed, after, end)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	at(50, 0, 100, 50, 1000)
	at(100, 100, 100, 50, 1000)
	at(300, 300, 100, 200, 1000)
	at(400, 300, 100, 400, 1000)
	at(1000, 1000, 100, 0, 1000)
	for _, start := range []pglogrepl.LSN{99, 1001} {
		_, err := check(start, 100, 0, 1000)
		require.ErrorContains(t, err, "--start-lsn "+start.String())
		assert.Equal(t, failure.Fatal, failure.Of(err))
	}
	p := New(Config{StartLSN: 300}, nil, slog.New(slog.DiscardHandler), nil)
	s := newSession(p)
	_, err := s.startAt(replication.IntentRecord{}, 1000)
	require.NoError(t, err)
	_, err = s.startAt(replication.IntentRecord{}, 299)
	require.ErrorContains(t, err, "beyond the end of the WAL", "it went back in a failover")
	s.slot.ConfirmedFlush = 500 // a session later
	got, err := s.startAt(written(s, 450, 450), 1000)
	require.NoError(t, err)
	assert.Equal(t, pglogrepl.LSN(450), got)
	got, err = s.startAt(written(s, 100, 350), 1000) // a range that is unfinished where events are to be skipped
	require.NoError(t, err)
	assert.Equal(t, pglogrepl.LSN(100), got)
	s.history.Timeline++ // its positions are those of another history
	got, err = s.startAt(replication.IntentRecord{Intent: &replication.Intent{After: replication.Position{LSN: 100}}}, 1000)
	require.NoError(t, err)
	assert.Equal(t, pglogrepl.LSN(300), got)
}

func TestErrorsThatEndAnInsert(t *testing.T) {
	t.Parallel()
	assert.True(t, final(failure.Wrap(failure.Fatal, errors.New("no table"))))
	assert.True(t, final(failure.Wrap(failure.Poison, errors.New("bad row"))))
	assert.False(t, final(nil))
	assert.False(t, final(errors.New("connection reset")))
}

// A changed publication says itself what it is and what to do.
func TestARefusalIsNotAboutTheOwner(t *testing.T) {
	t.Parallel()
	refusal := failure.Wrap(failure.Fatal, errors.New("publication p was changed: do this"))
	require.EqualError(t, unproven(refusal), "publication p was changed: do this")
	require.ErrorIs(t, unproven(errors.New("connection reset")), errOwner)
}

// What ClickHouse refuses is kept so that it can be tried again.
func TestAPoisonRowBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	b := batch.New(roomy)
	e := decode.Event{ID: [16]byte{1}, Type: []byte("bad"), Environment: []byte("Test"), Context: []byte(`{"a":1}`), MetadataVersion: 2, DateTime: 3}
	b.Append(decode.Position{LSN: 7, Seq: 8}, 9, &e)
	r := b.RejectAt(0, "refused", 469)
	assert.Equal(t, decode.Position{LSN: 7, Seq: 8}, r.Position)
	assert.Equal(t, int64(9), r.CommitTime)
	assert.Equal(t, "bad", r.Type)
	assert.Equal(t, e.ID, [16]byte(r.ID))
	assert.Equal(t, "refused", r.Reason)
	tuple, err := decode.ParseTuple(r.Raw)
	require.NoError(t, err)
	again := batch.New(roomy)
	require.NoError(t, tuple.Append(&again.Rows, r.Position, r.CommitTime))
	assert.Equal(t, b.Context, again.Context)
	assert.Equal(t, b.ID, again.ID)
}

// Recording a position makes WAL, which makes the next position: a streamer that has
// nothing else to record does so less and less.
func TestAnIdleStreamerDoesNotFollowItsOwnRecords(t *testing.T) {
	t.Parallel()
	var idle idleRecord
	now := time.Now()
	end := pglogrepl.LSN(1000)
	records := 0
	for range 3600 { // an hour; each record is followed by some WAL of its own
		now = now.Add(time.Second)
		if idle.due(end+100, now) {
			records++
			end += 300
			idle.recordEnd, idle.recordedAt = end, now
		}
	}
	assert.Less(t, records, 150)
	assert.True(t, idle.due(end+idleBytes, now.Add(idleRecordInterval)), "others write")
	idle.recordedAt = now
	assert.False(t, idle.due(end+100*idleBytes, now), "not for every one of their writes")
}
