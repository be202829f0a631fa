package replay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
)

const (
	// senderTimeout is after how long of silence the server ends the replay's session, and we it.
	senderTimeout = time.Minute
	// statusInterval is how often the server hears from us, and is asked how far it has come.
	statusInterval = time.Second
)

// chunk is a part of the WAL: its rows, and the position before which the next one begins.
type chunk struct {
	rows        *decode.Rows
	after, upTo decode.Position // the rows lie behind after, and at or before upTo
}

// wal reads a range of the WAL again, through a temporary copy of a bookmark.
type wal struct {
	url, publication string
	slot             string // of the bookmark
	from, to         pglogrepl.LSN
	limits           batch.Limits
	messages         pglogrepl.LSN // as in session
	localOnly        bool
	progress         func(done uint64)

	conn *replication.Conn
	read atomic.Uint64 // up to where everything has been read; the copy needs no more of it
}

// each hands the transactions whose commit record lies in [from, to) over,
// in chunks and in order. A chunk's rows are valid during the call.
func (w *wal) each(ctx context.Context, do func(context.Context, chunk) error) error {
	copied := "diehard_replay_" + strings.ToLower(rand.Text())
	conn, err := replication.Connect(ctx, w.url, "diehard-streamer-replay", senderTimeout, nil)
	if err != nil {
		return err
	}
	w.conn = conn
	defer conn.Close()
	if err := conn.CopySlot(ctx, w.slot, copied); err != nil {
		return err
	}
	if err := conn.Start(ctx, copied, w.publication, replication.Wanted{Messages: w.messages != 0, LocalOnly: w.localOnly}, w.from); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, conn.Close)() // ends a blocked read
	reporting, stop := context.WithCancel(ctx)
	var reporter sync.WaitGroup
	defer reporter.Wait()
	defer stop()
	reporter.Go(func() { w.report(reporting) })
	if err := w.chunks(ctx, do); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// report keeps the server informed. A failure shows in the reader, too.
func (w *wal) report(ctx context.Context) {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := w.conn.Confirm(pglogrepl.LSN(w.read.Load()), true, senderTimeout); err != nil {
			return
		}
	}
}

func (w *wal) chunks(ctx context.Context, do func(context.Context, chunk) error) error {
	b := batch.New(w.limits)
	decoder := decode.NewDecoder(decode.Position{})
	decoder.AcceptMessagesFrom(w.messages)
	after := before(w.from)
	hand := func(upTo decode.Position) error {
		err := do(ctx, chunk{rows: &b.Rows, after: after, upTo: upTo})
		after = upTo
		b.Reset(w.limits)
		return err
	}
	lastMessageAt := time.Now()
	for {
		msg, err := w.conn.Receive(time.Now().Add(statusInterval))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if w.conn.Progressed() {
				lastMessageAt = time.Now()
			}
			if time.Since(lastMessageAt) < senderTimeout {
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("read the WAL: %w", err)
		}
		end, err := w.take(msg, decoder, &b.Rows)
		if err != nil {
			return err
		}
		if end {
			return hand(before(w.to))
		}
		if b.Full(w.limits) {
			if err := hand(decoder.Last()); err != nil {
				return err
			}
		}
		lastMessageAt = time.Now()
	}
}

// take reads a message; end means that nothing before w.to can follow.
func (w *wal) take(msg replication.Message, decoder *decode.Decoder, rows *decode.Rows) (end bool, err error) {
	if msg.Kind == replication.Keepalive {
		if !decoder.InTransaction() {
			w.advance(msg.WALEnd)
		}
		return !decoder.InTransaction() && msg.WALEnd >= w.to, nil
	}
	kind, err := decoder.DecodeHead(msg.Data, msg.Size, rows)
	switch {
	case err != nil:
		return false, err
	case kind == decode.Begin:
		return decoder.Last().LSN >= w.to, nil
	case kind == decode.Commit:
		w.advance(decoder.CommitEnd())
		return decoder.CommitEnd() >= w.to, nil
	}
	return false, nil
}

func (w *wal) advance(to pglogrepl.LSN) {
	if uint64(to) <= w.read.Load() {
		return
	}
	w.read.Store(uint64(to))
	if to > w.from {
		w.progress(uint64(min(to, w.to) - w.from))
	}
}

// before is the last position of the commits before lsn.
func before(lsn pglogrepl.LSN) decode.Position {
	if lsn == 0 {
		return decode.Position{}
	}
	return decode.Position{LSN: lsn - 1, Seq: math.MaxUint32}
}
