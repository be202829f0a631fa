package pipeline

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/decode"
	"diehard/streamer/failpoint"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// open connects both ends, checks what must hold, waits for the slot and starts the stream.
func (p *Pipeline) open(ctx context.Context) (*session, error) {
	p.progress.setState(Connecting)
	nonce := newNonce()
	s := &session{Pipeline: p, log: p.log, nonce: nonce, name: "diehard-streamer-" + nonce}
	connecting, cancel := context.WithTimeout(ctx, p.cfg.InsertTimeout)
	defer cancel()
	var err error
	if s.control, err = replication.OpenControl(connecting, p.cfg.PostgresURL, s.name, p.cfg.origin()); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (c Config) origin() replication.Origin {
	return replication.Origin{Slot: c.Slot, Publication: c.Publication, Shard: c.Shard, Messages: c.Messages}
}

func newNonce() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// start takes the slot. What it reads of ClickHouse here is a lower bound: a
// predecessor may still be writing. resume reads it again behind the fence.
func (s *session) start(ctx context.Context) error {
	var walEnd pglogrepl.LSN
	var landed decode.Position
	err := s.within(ctx, func(ctx context.Context) (err error) {
		if walEnd, landed, err = s.meet(ctx); err != nil {
			return err
		}
		if err = s.control.CheckDivision(ctx); err != nil {
			return err
		}
		s.slot, err = s.control.Preflight(ctx, landed.LSN != 0)
		return err
	})
	if errors.Is(err, replication.ErrNoSlot) {
		err = s.firstSlot(ctx)
	}
	if err != nil {
		return err
	}
	at, err := s.startAt(landed.LSN, walEnd)
	if err != nil {
		return err
	}
	if at == landed.LSN {
		s.again = at
	}
	if s.slot.Active {
		return s.standBy(ctx)
	}
	err = s.within(ctx, func(ctx context.Context) error {
		if err := s.checkLanded(ctx, at); err != nil {
			return err
		}
		return s.takeSlot(ctx, at)
	})
	if errors.Is(err, replication.ErrSlotActive) {
		return s.standBy(ctx)
	}
	return err
}

// within bounds what the servers may take to answer: a network that swallows
// everything must not be waited for in silence.
func (s *session) within(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.InsertTimeout)
	defer cancel()
	return ask(ctx)
}

// firstSlot makes the slot, which may take as long as the transactions that are running.
func (s *session) firstSlot(ctx context.Context) (err error) {
	s.log.Info("making the slot; PostgreSQL waits for the transactions that are writing", "slot", s.cfg.Slot)
	if s.slot, err = s.control.FirstSlot(ctx); err != nil {
		return err
	}
	if s.slot.Late {
		s.log.Warn("the outbox had events before the slot was made: `streamer replay --from-table` delivers those that are missing", "slot", s.cfg.Slot)
	}
	return nil
}

// meet connects to both servers and finds out whether they belong together.
func (s *session) meet(ctx context.Context) (walEnd pglogrepl.LSN, landed decode.Position, err error) {
	if s.conn, err = replication.Connect(ctx, s.cfg.PostgresURL, s.name, s.cfg.SenderTimeout); err != nil {
		return 0, landed, err
	}
	// First: a standby that is promoted meanwhile would be identified with the timeline it leaves.
	if err = s.control.CheckServer(ctx); err != nil {
		return 0, landed, err
	}
	sys, err := s.conn.Identify(ctx)
	if err != nil {
		return 0, landed, err
	}
	if err = s.sameServer(sys.SystemID); err != nil {
		return 0, landed, err
	}
	s.source = sink.Source{SystemID: sys.SystemID, Slot: s.cfg.Slot}
	s.sink = sink.New(s.ch, s.cfg.Tables, s.source, uint32(sys.Timeline)) //nolint:gosec // timelines are 32 bits wide
	if err = s.sink.CheckTables(ctx); err != nil {
		return 0, landed, err
	}
	landed, timeline, err := s.sink.Position(ctx)
	if err != nil {
		return 0, landed, err
	}
	walEnd, err = s.conn.CheckHistory(ctx, sys.Timeline, replication.Landed{LSN: landed.LSN, Timeline: timeline})
	return walEnd, landed, err
}

// sameServer refuses an address that has come to mean another server: its
// events would begin in the middle, and those of the first would be missed.
func (p *Pipeline) sameServer(systemID string) error {
	if p.systemID != "" && p.systemID != systemID {
		return failure.Wrap(failure.Fatal, fmt.Errorf("DATABASE_URL leads to another server than before: its system identifier is %s and was %s; "+
			"correct the address, or start again if the change is meant", systemID, p.systemID))
	}
	p.systemID = systemID
	return nil
}

// takeSlot starts the stream. Only then, with the slot ours, is its position
// surely not behind what a predecessor confirmed.
func (s *session) takeSlot(ctx context.Context, at pglogrepl.LSN) error {
	messages, err := s.control.WithMessages(ctx)
	if err != nil {
		return err
	}
	if err := s.conn.Start(ctx, s.cfg.Slot, s.cfg.Publication, messages, at); err != nil {
		return err
	}
	failpoint.Hit("started")
	s.slot, err = s.control.Slot(ctx)
	return err
}

// standBy waits until the streamer that holds the slot leaves it. It always ends with an error.
func (s *session) standBy(ctx context.Context) error {
	if s.progress.State() != Standby {
		s.progress.setState(Standby)
		s.log.Info("standby: another streamer holds the slot; taking over when it ends", "slot", s.cfg.Slot)
	}
	for {
		if err := sleep(ctx, standbyPoll); err != nil {
			return err
		}
		err := s.within(ctx, func(ctx context.Context) (err error) {
			s.slot, err = s.control.Slot(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if !s.slot.Active {
			return errSlotFree
		}
	}
}

// errSlotFree ends a standby's session: it begins anew, because everything that
// was checked may have changed while it waited.
var errSlotFree = errors.New("the slot is free")

// checkLanded refuses a stream of what has landed by other slots, when the outbox was
// divided differently. The server begins at what the slot has confirmed, or at at behind it.
func (s *session) checkLanded(ctx context.Context, at pglogrepl.LSN) error {
	commits, err := s.sink.Commits(ctx)
	if err != nil {
		return err
	}
	return s.control.CheckLanded(ctx, max(at, s.slot.ConfirmedFlush), commits)
}

// resume ends what a predecessor left running in ClickHouse and reads where the
// tables end. Nothing but our own inserts changes that from here on.
func (s *session) resume(ctx context.Context) (*decode.Decoder, map[decode.Position]bool, error) {
	var waiting uint64
	err := s.sink.Fence(ctx, s.source.QueryPrefix(), func(n uint64) {
		if n != waiting {
			s.log.Info("waiting for inserts of the streamer before", "inserts", n)
		}
		waiting = n
	})
	if err != nil {
		return nil, nil, err
	}
	failpoint.Hit("fenced")
	var landed decode.Position
	var known map[decode.Position]bool
	var messages pglogrepl.LSN
	err = s.within(ctx, func(ctx context.Context) (err error) {
		// Again, now that the slot is ours: of two that began together, one sees the other.
		if err = s.control.CheckDivision(ctx); err != nil {
			return err
		}
		if landed, _, err = s.sink.Position(ctx); err != nil {
			return err
		}
		if err = s.checkLanded(ctx, max(landed.LSN, s.cfg.StartLSN)); err != nil {
			return err
		}
		if known, err = s.sink.DeadLettersAfter(ctx, landed); err != nil {
			return err
		}
		if err = s.warnOfMissingShards(ctx); err != nil {
			return err
		}
		messages, err = s.control.NoteMessages(ctx, max(unnumbered(landed, known), s.slot.ConfirmedFlush))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	s.log.Info("streaming", "slot", s.cfg.Slot, "publication", s.cfg.Publication,
		"table", s.cfg.Tables.EventLog, "source", s.source.String(),
		"messages_from", messages.String(),
		"batch_rows", s.cfg.Limits.Rows, "batch_bytes", s.cfg.Limits.Bytes, "flush_interval", s.cfg.FlushInterval,
		"confirmed_lsn", s.slot.ConfirmedFlush.String(), "resume_after", fmt.Sprintf("%s/%d", landed.LSN, landed.Seq))
	decoder := decode.NewDecoder(landed)
	decoder.Messages(messages)
	if s.again > s.slot.ConfirmedFlush { // otherwise the server begins behind it
		decoder.Expect(s.again)
	}
	return decoder, known, nil
}

// unnumbered is where the first transaction may be of which nothing has landed.
func unnumbered(landed decode.Position, deadLetters map[decode.Position]bool) pglogrepl.LSN {
	last := landed.LSN
	for at := range deadLetters {
		last = max(last, at.LSN)
	}
	return last + 1
}

func (s *session) warnOfMissingShards(ctx context.Context) error {
	missing, err := s.control.MissingShards(ctx)
	if err != nil || len(missing) == 0 {
		return err
	}
	s.log.Warn("other shards have no slot: their events are kept for nobody until `streamer migrate up` or a streamer makes it, "+
		"and need `streamer replay --from-table` then", "slots", strings.Join(missing, ", "))
	return nil
}
