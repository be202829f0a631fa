package pipeline

import (
	"context"
	"encoding/binary"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
)

// What the receiver decides needs no connection: these tests give it messages
// and the time. What it does with real servers is the subject of package e2e.

const (
	interval      = 200 * time.Millisecond
	senderTimeout = 10 * time.Second
)

// reception is a receiver with a writer that a test plays.
type reception struct {
	*receiver
	t     require.TestingT
	ready chan *batch.Batch
	free  chan *batch.Batch
	delay time.Duration // what the server sends next was committed so long before
}

func newReception(t require.TestingT, limits batch.Limits) *reception {
	p := New(Config{Limits: limits, FlushInterval: interval, SenderTimeout: senderTimeout}, nil, slog.New(slog.DiscardHandler), nil)
	ready, free := make(chan *batch.Batch, 1), make(chan *batch.Batch, 1)
	free <- batch.New(limits)
	r := &receiver{
		s: newSession(p), decoder: decode.NewDecoder(decode.Position{}),
		confirmed: &confirmed{kick: make(chan struct{}, 1)}, ready: ready, free: free, waiting: new(atomic.Int32),
		open: batch.New(limits), lastMessageAt: time.Now(),
	}
	return &reception{receiver: r, t: t, ready: ready, free: free}
}

var roomy = batch.Limits{Rows: 1000, Bytes: 1 << 20}

// data receives a pgoutput message, at a time when more can be read at once.
func (r *reception) data(m []byte) {
	r.receivedSinceWait = true
	require.NoError(r.t, r.handleMessage(replication.Message{
		Kind: replication.Data, Data: m, Size: len(m), Sent: pgEpoch + r.delay.Microseconds(),
	}))
}

func (r *reception) keepalive(end pglogrepl.LSN, reply bool) {
	r.receivedSinceWait = true
	require.NoError(r.t, r.handleMessage(replication.Message{Kind: replication.Keepalive, WALEnd: end, ReplyRequested: reply}))
}

func (r *reception) wait(now time.Time) time.Time {
	until, err := r.beforeWait(now)
	require.NoError(r.t, err)
	return until
}

// handed returns the batch that was handed over, nil if none was.
func (r *reception) handed() *batch.Batch {
	select {
	case b := <-r.ready:
		return b
	default:
		return nil
	}
}

// finishWrite is the writer: it gives an empty batch back.
func (r *reception) finishWrite(b *batch.Batch) {
	b.Reset(r.s.cfg.Limits)
	r.free <- b
}

var (
	be16 = binary.BigEndian.AppendUint16
	be32 = binary.BigEndian.AppendUint32
	be64 = binary.BigEndian.AppendUint64
)

// pgEpoch is when beginOf's transactions are committed.
const pgEpoch = 946_684_800_000_000

func beginOf(lsn pglogrepl.LSN) []byte { return be32(be64(be64([]byte{'B'}, uint64(lsn)), 0), 1) }

func commitOf(lsn pglogrepl.LSN) []byte {
	return be64(be64(be64([]byte{'C', 0}, uint64(lsn)), uint64(lsn+48)), 0)
}

// A receiver that stops between transactions leaves none written in part.
func TestATransactionWithoutItsEndIsNotDrained(t *testing.T) {
	t.Parallel()
	r := newReception(t, roomy)
	r.data(relationOf())
	r.data(beginOf(100))
	r.data(rowOf())
	r.data(commitOf(100))
	r.data(beginOf(200))
	r.data(rowOf())
	r.data(rowOf())
	r.drain(t.Context())
	b := r.handed()
	require.NotNil(t, b)
	assert.Equal(t, 1, b.Len())
	assert.Equal(t, decode.Position{LSN: 100, Seq: 1}, b.Last())
	assert.Equal(t, pglogrepl.LSN(148), b.Confirm)
}

var columns = []struct {
	name string
	oid  uint32
	size int
}{{"id", 2950, 16}, {"event_type", 25, 1}, {"event_date_time", 1184, 8}, {"environment", 25, 0}, {"event_context", 114, 2}, {"metadata_version", 20, 8}}

func relationOf() []byte {
	b := append(be32([]byte{'R'}, 1), "public\x00outbox\x00d"...)
	b = be16(b, uint16(len(columns)))
	for _, c := range columns {
		b = append(append(b, 0), c.name+"\x00"...)
		b = be32(be32(b, c.oid), 0)
	}
	return b
}

func rowOf() []byte {
	b := be16(append(be32([]byte{'I'}, 1), 'N'), uint16(len(columns)))
	for _, c := range columns {
		b = append(be32(append(b, 'b'), uint32(c.size)), make([]byte, c.size)...)
	}
	return b
}

// transaction receives n rows that are committed at lsn.
func (r *reception) transaction(lsn pglogrepl.LSN, n int) {
	r.data(relationOf())
	r.data(beginOf(lsn))
	for range n {
		r.data(rowOf())
	}
	r.data(commitOf(lsn))
}

func TestALoneEventGoesOutAtOnce(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	r.transaction(1000, 1)
	r.wait(now)
	b := r.handed()
	require.NotNil(t, b)
	assert.Equal(t, 1, b.Len())
	assert.Equal(t, pglogrepl.LSN(1048), b.Confirm)
	assert.True(t, r.open.Empty())
}

func TestASteadyTrickleGoesOutOnceAnInterval(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	r.transaction(1000, 1)
	r.wait(now)
	first := r.handed()
	require.NotNil(t, first)
	r.finishWrite(first)
	for i := range 9 {
		r.transaction(pglogrepl.LSN(2000+1000*i), 1)
		assert.Equal(t, now.Add(interval), r.wait(now.Add(time.Duration(i+1)*interval/10)), "not before it is due")
		require.Nil(t, r.handed())
	}
	r.wait(now.Add(interval))
	second := r.handed()
	require.NotNil(t, second)
	assert.Equal(t, 9, second.Len())
	assert.Equal(t, pglogrepl.LSN(10_048), second.Confirm)
}

// What is late by seconds waits for a full batch as long as more comes, within bounds. Lateness is
// by the server's clock, whatever ours says.
func TestABacklogGoesOutInFullBatches(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ late, waits time.Duration }{
		"not late":        {0, interval},
		"a little":        {lateShare * interval, interval},
		"more":            {lateShare * 3 * interval, 3 * interval},
		"much":            {time.Hour, lateWait},
		"before its time": {-time.Hour, interval}, // the clock was set back
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, began := newReception(t, roomy), time.Now()
			r.delay = tc.late
			r.lastHandoff = began
			now := began
			for lsn := pglogrepl.LSN(1000); ; lsn += 1000 {
				r.transaction(lsn, 1)
				due := r.wait(now)
				if b := r.handed(); b != nil {
					break
				}
				require.LessOrEqual(t, due, now.Add(interval), "silence is noticed")
				require.Less(t, now.Sub(began), 2*lateWait, "nothing goes out")
				now = now.Add(interval / 4)
			}
			assert.Equal(t, tc.waits, now.Sub(began))
		})
	}
}

// Nothing is gained by waiting when no more comes.
func TestTheEndOfABacklogWaitsForAnInterval(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	r.delay, r.lastHandoff = time.Hour, now
	r.transaction(1000, 1)
	now = now.Add(interval * 3 / 2)
	due := r.wait(now)
	assert.Equal(t, now.Add(interval), due)
	require.Nil(t, r.handed())
	r.wait(due)
	require.NotNil(t, r.handed())
}

// A keepalive between transactions says that the server has no more, and commit times of another
// server say nothing.
func TestWhatIsNotLateWaitsForAnInterval(t *testing.T) {
	t.Parallel()
	for name, receive := range map[string]func(r *reception){
		"the server has no more": func(r *reception) {
			r.transaction(1000, 1)
			r.keepalive(1048, false)
		},
		"another server's commit time": func(r *reception) {
			r.data(relationOf())
			r.data(beginOf(1000))
			r.data(append(be64([]byte{'O'}, 900), "other\x00"...))
			r.data(rowOf())
			r.data(commitOf(1000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, now := newReception(t, roomy), time.Now()
			r.delay, r.lastHandoff = time.Hour, now
			receive(r)
			r.wait(now.Add(interval))
			require.NotNil(t, r.handed())
			r.transaction(2000, 1)
			assert.Equal(t, time.Hour, r.late, "the next one is late")
		})
	}
}

// A wait for a batch ends often enough to notice a server that has gone, and a stop.
func TestALongIntervalIsWaitedForInSteps(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	r.s.cfg.FlushInterval = time.Hour
	r.lastHandoff = now
	r.transaction(1000, 1)
	assert.Equal(t, now.Add(r.pollTimeout()), r.wait(now))
}

// While the writer is busy the batch grows; it wakes us when it is done.
func TestABusyWriterIsNotGivenSmallBatches(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	r.transaction(1000, 1)
	r.wait(now)
	first := r.handed()
	require.NotNil(t, first)
	for i := range 5 {
		r.transaction(pglogrepl.LSN(2000+1000*i), 1)
		now = now.Add(2 * interval)
		assert.LessOrEqual(t, r.wait(now), now.Add(interval))
		require.Nil(t, r.handed())
		assert.NotZero(t, r.waiting.Load(), "the writer sees that the receiver waits")
	}
	r.finishWrite(first)
	r.wait(now)
	assert.Zero(t, r.waiting.Load())
	assert.Equal(t, 5, r.handed().Len())
}

// The end of a transaction is likely on its way; rows of a long one go out anyway.
func TestAnOpenTransactionWaitsAnInterval(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	r.data(relationOf())
	r.data(beginOf(1000))
	r.data(rowOf())
	assert.Equal(t, now.Add(interval), r.wait(now))
	require.Nil(t, r.handed())
	r.data(rowOf())
	r.wait(now.Add(interval))
	piece := r.handed()
	require.NotNil(t, piece)
	assert.Equal(t, 2, piece.Len())
	assert.Zero(t, piece.Confirm, "a piece confirms nothing")
	r.finishWrite(piece)
	r.data(commitOf(1000))
	r.wait(now.Add(interval))
	end := r.handed()
	require.NotNil(t, end, "the position alone goes out at once")
	assert.True(t, end.Empty())
	assert.Equal(t, pglogrepl.LSN(1048), end.Confirm)
}

// An idle slot advances by keepalives alone; inside a transaction they say nothing.
func TestKeepalivesMoveAnIdleSlot(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	assert.Equal(t, now.Add(maxStep), r.wait(now))
	require.Nil(t, r.handed())
	r.keepalive(5000, false)
	r.wait(now)
	b := r.handed()
	require.NotNil(t, b)
	assert.Equal(t, pglogrepl.LSN(5000), b.Confirm)
	r.finishWrite(b)

	r.data(beginOf(6000))
	r.keepalive(6000, false)
	r.wait(now)
	require.Nil(t, r.handed())
	assert.False(t, r.open.Pending())
	assert.Equal(t, pglogrepl.LSN(6000), r.s.progress.Received())
}

// A server that shuts down asks for a reply: what is there goes out at once.
func TestAServerThatWaitsIsAnswered(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	r.transaction(1000, 1)
	r.wait(now)
	r.finishWrite(r.handed())
	r.transaction(2000, 1)
	r.wait(now.Add(time.Millisecond))
	require.Nil(t, r.handed())
	r.keepalive(2048, true)
	select {
	case <-r.confirmed.kick:
	default:
		t.Error("the status sender was not notified")
	}
	r.wait(now.Add(time.Millisecond))
	require.NotNil(t, r.handed())
	assert.False(t, r.replyRequested)
}

func TestASilentServerIsAskedAndThenGivenUp(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	r.lastMessageAt = now
	r.wait(now.Add(senderTimeout / 4))
	assert.False(t, r.confirmed.ask.Load())
	r.wait(now.Add(senderTimeout/4 + time.Millisecond))
	assert.True(t, r.confirmed.ask.Swap(false), "a keepalive is asked for")
	r.wait(now.Add(2 * senderTimeout))
	assert.True(t, r.confirmed.ask.Load(), "again and again")
	_, err := r.beforeWait(now.Add(2*senderTimeout + time.Millisecond))
	require.ErrorContains(t, err, "PostgreSQL has sent nothing for 20s")

	r.keepalive(1, false)
	later := now.Add(3 * senderTimeout)
	r.wait(later)
	r.wait(later.Add(senderTimeout/2 + time.Millisecond))
	assert.True(t, r.confirmed.ask.Load(), "after an answer the silence begins anew")
}

// A walsender that reads a message of hundreds of megabytes is silent for longer than a session
// allows: the next one allows more, or the message would never come.
func TestAfterASilenceALongerOneIsAllowed(t *testing.T) {
	t.Parallel()
	r, now := newReception(t, roomy), time.Now()
	silentFor := func(d time.Duration) error {
		r.lastMessageAt, r.receivedSinceWait = now, false
		_, err := r.beforeWait(now.Add(d))
		return err
	}
	for limit := 2 * senderTimeout; limit <= 8*senderTimeout; limit *= 2 {
		require.NoError(t, silentFor(limit))
		require.Error(t, silentFor(limit+1))
	}
	for range 100 {
		require.Error(t, silentFor(2<<maxSilences*senderTimeout+1), "it is bounded")
	}
	r.transaction(1000, 1)
	require.NoError(t, silentFor(2*senderTimeout))
	require.Error(t, silentFor(2*senderTimeout+1), "a transaction has come")
}

// While a full batch waits for the writer nothing is read. However long that
// takes, the server is not to blame for the silence; and the end of work ends it.
func TestHandingOverWaitsForTheWriter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newReception(t, roomy)
		first := <-r.free // the writer has it
		r.transaction(1000, 1)
		began := time.Now()
		time.AfterFunc(10*senderTimeout, func() { r.free <- first })
		r.flushBlocking(t.Context())
		assert.Equal(t, 10*senderTimeout, time.Since(began))
		require.NotNil(t, r.handed())
		r.wait(time.Now())
		assert.False(t, r.confirmed.ask.Load())

		r.transaction(2000, 1)
		work, fail := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, fail)
		r.flushBlocking(work)
		assert.Nil(t, r.handed())
		assert.Equal(t, 1, r.open.Len(), "it comes again in the next session")
	})
}

func TestADecodingErrorEndsTheSession(t *testing.T) {
	t.Parallel()
	r := newReception(t, roomy)
	err := r.handleMessage(replication.Message{Kind: replication.Data, Data: []byte("?")})
	require.ErrorContains(t, err, "unknown message")
}

// Whatever arrives in whatever rhythm, and however the writer keeps up: a
// position is confirmed only with all rows before it, and in the end all are.
func TestNothingIsConfirmedBeforeItsRowsAreHandedOver(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := newReception(t, batch.Limits{Rows: rapid.IntRange(1, 8).Draw(t, "rows"), Bytes: 1 << 20})
		now, lsn := time.Now(), pglogrepl.LSN(1000)
		sent, durable := 0, 0
		var confirmed pglogrepl.LSN
		rowsUpTo := map[pglogrepl.LSN]int{} // by commit: all rows up to its end
		var busy *batch.Batch
		finish := func() { // the writer writes what it has
			if busy == nil {
				busy = r.handed()
			}
			if b := busy; b != nil {
				busy = nil
				durable += b.Len()
				confirmed = max(confirmed, b.Confirm)
				r.finishWrite(b)
			}
		}
		full := func() {
			if r.open.Full(r.s.cfg.Limits) {
				finish()
				r.flushBlocking(context.Background())
			}
		}
		r.data(relationOf())
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				if r.decoder.InTransaction() {
					t.Skip()
				}
				lsn += 100
				r.data(beginOf(lsn))
			},
			"row": func(t *rapid.T) {
				if !r.decoder.InTransaction() {
					t.Skip()
				}
				r.data(rowOf())
				sent++
				full()
			},
			"commit": func(t *rapid.T) {
				if !r.decoder.InTransaction() {
					t.Skip()
				}
				r.data(commitOf(lsn))
				rowsUpTo[lsn] = sent
			},
			"keepalive": func(t *rapid.T) {
				end := lsn
				if !r.decoder.InTransaction() {
					end = lsn + pglogrepl.LSN(rapid.IntRange(0, 99).Draw(t, "end"))
				}
				r.keepalive(end, rapid.Bool().Draw(t, "reply"))
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 500).Draw(t, "ms")) * time.Millisecond)
				if !r.wait(now).After(now) && r.open.Pending() {
					t.Error("a wait that ends before it begins, and nothing handed over")
				}
			},
			"writer takes": func(t *rapid.T) {
				if busy != nil {
					t.Skip()
				}
				busy = r.handed()
			},
			"writer writes": func(*rapid.T) { finish() },
			"": func(t *rapid.T) {
				for commit, rows := range rowsUpTo {
					if confirmed > commit && durable < rows {
						t.Errorf("%s is confirmed with %d durable rows, the transaction at %s needs %d", confirmed, durable, commit, rows)
					}
				}
				if confirmed > lsn && r.decoder.InTransaction() {
					t.Errorf("%s is confirmed inside the transaction at %s", confirmed, lsn)
				}
			},
		})
		if r.decoder.InTransaction() {
			r.data(commitOf(lsn))
		}
		for range 3 {
			finish()
			r.receivedSinceWait = true
			now = now.Add(time.Minute)
			r.wait(now)
		}
		finish()
		require.Equal(t, sent, durable)
		rows, _ := r.s.progress.Read()
		require.Equal(t, int64(sent), rows)
	})
}

// The transaction that the server was asked for again must come first. Neither a
// later one nor a keepalive behind it may be taken for progress.
func TestAServerMustHaveWhatIsWritten(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		message replication.Message
		refused bool
	}{
		"the transaction itself": {replication.Message{Kind: replication.Data, Data: beginOf(1000)}, false},
		"a later transaction":    {replication.Message{Kind: replication.Data, Data: beginOf(1008)}, true},
		"a keepalive before it":  {replication.Message{Kind: replication.Keepalive, WALEnd: 1000}, false},
		"a keepalive behind it":  {replication.Message{Kind: replication.Keepalive, WALEnd: 1001}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReception(t, roomy)
			r.decoder.ExpectCommit(1000)
			err := r.handleMessage(c.message)
			if !c.refused {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, decode.ErrDivergedHistory)
			assert.Equal(t, failure.Fatal, failure.Of(err))
			assert.LessOrEqual(t, r.open.Confirm, pglogrepl.LSN(1000))
		})
	}
	r := newReception(t, roomy)
	r.decoder.ExpectCommit(1000)
	r.data(beginOf(1000))
	r.data(commitOf(1000))
	r.data(beginOf(1008))
	r.data(commitOf(1008))
	r.keepalive(2000, false)
}
