package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/failpoint"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// open connects to PostgreSQL, checks what must hold, waits for the slot and starts the
// stream. It does not need ClickHouse, unless the slot has to be created.
func (p *Pipeline) open(ctx context.Context) (*session, error) {
	p.progress.setState(Connecting)
	s := newSession(p)
	connecting, cancel := context.WithTimeout(ctx, p.cfg.InsertTimeout)
	defer cancel()
	var err error
	if s.control, err = replication.OpenControl(connecting, p.cfg.PostgresURL, s.name, p.cfg.Origin); err != nil {
		return nil, err
	}
	if err := s.acquireSlot(ctx); err != nil {
		err = s.whyEnded(err)
		s.close()
		return nil, err
	}
	return s, nil
}

// acquireSlot takes the slot and claims its record. What it reads of the record before is
// a lower bound, because a predecessor may still be writing.
func (s *session) acquireSlot(ctx context.Context) error {
	var walEnd pglogrepl.LSN
	var rec replication.IntentRecord
	err := s.within(ctx, func(ctx context.Context) (err error) {
		if walEnd, err = s.connect(ctx); err != nil {
			return err
		}
		if err = s.control.CheckMigrated(ctx, s.cfg.Migrated); err != nil {
			return err
		}
		if err = s.control.CheckResharding(ctx); err != nil {
			return err
		}
		s.slot, err = s.control.Preflight(ctx, false)
		return err
	})
	if errors.Is(err, replication.ErrNoSlot) {
		err = s.createInitialSlot(ctx)
	}
	if err != nil {
		return err
	}
	err = s.within(ctx, func(ctx context.Context) (err error) {
		rec, err = s.control.ReadIntent(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if s.startedAt, err = s.startAt(rec, walEnd); err != nil {
		return err
	}
	if s.skips { // retention waits for the replay
		if err = s.within(ctx, s.control.MissEvents); err != nil {
			s.p.startChecked = false
			return err
		}
	}
	if s.slot.Active {
		return s.standBy(ctx)
	}
	if err = s.within(ctx, s.warn); err != nil {
		return err
	}
	err = s.within(ctx, s.takeSlot)
	if errors.Is(err, replication.ErrSlotActive) {
		return s.standBy(ctx)
	}
	return err
}

// warn logs what harms although nothing is missing, each once in the life of the process.
func (s *session) warn(ctx context.Context) error {
	warnings, err := s.control.Warnings(ctx)
	for _, w := range warnings {
		if !s.p.warned[w.Problem] {
			s.p.warned[w.Problem] = true
			s.log.Warn("a check failed; the streamer goes on", "problem", w.Problem, "check", w.Name, "fix", w.Fix)
		}
	}
	return err
}

// sameHistory reports whether the positions of rec are those of this server's WAL.
func (s *session) sameHistory(rec replication.IntentRecord) bool {
	return rec.SystemID == s.source.SystemID && rec.Timeline == s.history.Timeline
}

// within bounds what the servers may take to answer: a network that swallows
// everything must not be waited for in silence.
func (s *session) within(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.InsertTimeout)
	defer cancel()
	return ask(ctx)
}

// createInitialSlot may take as long as the transactions that are running. It asks
// ClickHouse first: a slot whose rows are there was lost.
func (s *session) createInitialSlot(ctx context.Context) error {
	err := s.within(ctx, func(ctx context.Context) error {
		if err := s.sink.CheckTables(ctx); err != nil {
			return err
		}
		written, _, err := s.sink.Position(ctx)
		if err != nil || written.LSN == 0 {
			return err
		}
		if _, err = s.control.Preflight(ctx, true); errors.Is(err, replication.ErrNoSlot) { // its creation was interrupted
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	s.log.Info("creating replication slot; waiting for running transactions", "slot", s.cfg.Origin.SlotName())
	s.control.Waits = func(what string) {
		s.log.Info("waiting", "for", what)
		s.progress.waitsFor.Store(&what)
	}
	defer s.progress.waitsFor.Store(nil)
	if s.slot, err = s.control.CreateInitialSlot(ctx); err != nil {
		return err
	}
	if s.slot.MissedEvents {
		s.log.Warn("the outbox had events before the slot was created: `streamer replay --from-table` delivers those that are missing", "slot", s.cfg.Origin.SlotName())
	}
	return nil
}

// connect opens the replication connection and finds out which server it is.
func (s *session) connect(ctx context.Context) (walEnd pglogrepl.LSN, err error) {
	if s.conn, err = replication.Connect(ctx, s.cfg.PostgresURL, s.name, s.cfg.SenderTimeout, s.cfg.Origin.Dial); err != nil {
		return 0, err
	}
	// First: a standby that is promoted meanwhile would be identified with the timeline it leaves.
	if err = s.control.CheckServer(ctx); err != nil {
		return 0, err
	}
	sys, err := s.conn.Identify(ctx)
	if err != nil {
		return 0, err
	}
	if err = s.p.sameServer(sys.SystemID, func() (replication.IntentRecord, error) { return s.control.ReadIntent(ctx) }); err != nil {
		return 0, err
	}
	s.cfg.StartLSN = s.p.cfg.StartLSN
	if s.history, err = s.conn.History(ctx, sys.Timeline); err != nil {
		return 0, err
	}
	s.p.noteTimeline(s.history.Timeline)
	s.source = sink.Source{SystemID: sys.SystemID, Slot: s.cfg.Origin.SlotName()}
	s.sink = sink.New(s.p.ch, s.cfg.Tables, s.source, s.history.TimelineAt)
	if s.cfg.Reader != nil {
		s.sink.ReadThrough(s.cfg.Reader)
	}
	return sys.XLogPos, nil
}

// noteTimeline keeps since when the timeline is known: from then on no insert of the one
// before can be registered any more.
func (p *Pipeline) noteTimeline(timeline uint32) {
	if p.newTimeline.timeline != timeline {
		p.newTimeline.other = p.newTimeline.timeline != 0
		p.newTimeline.timeline, p.newTimeline.since = timeline, time.Now()
	}
}

// sameServer refuses an address that has come to mean another server: its
// events would begin in the middle, and those of the first would be missed. One that
// pg_upgrade made of the first has its record.
func (p *Pipeline) sameServer(systemID string, record func() (replication.IntentRecord, error)) error {
	known := p.systemID
	if known != "" && known != systemID {
		if rec, err := record(); err != nil || rec.SystemID != known {
			return failure.Wrap(failure.Fatal, failure.Because(failure.History, fmt.Errorf("DATABASE_URL leads to another server than before: its system identifier is %s and was %s; "+
				"correct the address, or restart the streamer if the change is intended", systemID, known)))
		}
		p.log.Warn("the server was upgraded, or restored from a dump: its system identifier has changed", "system_id", systemID, "before", known)
		p.newTimeline.timeline = 0 // its timelines are others
		if p.cfg.StartLSN != 0 {   // and so is its WAL
			p.log.Warn("--start-lsn is ignored: it is a position of the previous server", "start_lsn", p.cfg.StartLSN.String())
			p.cfg.StartLSN = 0
		}
	}
	p.systemID = systemID
	return nil
}

// takeSlot starts the stream and claims the record. Only then, with the slot ours, is
// its position surely not behind what a predecessor confirmed.
func (s *session) takeSlot(ctx context.Context) error {
	messages, err := s.control.WithMessages(ctx)
	if err != nil {
		return err
	}
	if err := s.conn.Start(ctx, s.cfg.Origin.SlotName(), s.cfg.Origin.PublicationName(), replication.Wanted{Messages: messages, LocalOnly: s.cfg.Origin.LocalOnly}, s.startedAt); err != nil {
		return err
	}
	failpoint.Hit("started")
	if s.record, err = s.control.ClaimIntent(ctx, s.owner(), s.source.SystemID, s.history.Timeline); err != nil {
		return err
	}
	s.claimedAt = time.Now()
	s.noteChangedPublication()
	if in := s.record.Intent; in != nil {
		s.predecessorTimeout = time.Duration(in.InsertTimeout) * time.Millisecond
	}
	failpoint.Hit("claimed")
	s.slot, err = s.control.Slot(ctx)
	return err
}

// standBy waits until the streamer that holds the slot leaves it. It always ends with an error.
func (s *session) standBy(ctx context.Context) error {
	if s.progress.State() != Standby {
		s.progress.setState(Standby)
		s.log.Info("standby: another streamer holds the slot; taking over when it ends", "slot", s.cfg.Origin.SlotName())
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
